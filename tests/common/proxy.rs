//! What stands between a client and a server, and fails.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Where a proxy hands on what it is sent.
#[derive(Copy, Clone)]
pub enum Upstream {
    /// Nowhere: all commands are answered by an error.
    None,
    /// To the server on this port.
    Server(u16),
    /// The same, but a connection breaks when a script is answered.
    BreaksOff(u16),
    /// The same, but a connection on which something is sent meanwhile is never answered again.
    Mute(u16),
    /// The same, but a second and a half after it is connected to.
    Late(u16),
}

pub struct Proxy {
    pub port: u16,
    upstream: Arc<Mutex<Upstream>>,
}

impl Proxy {
    pub async fn start(upstream: Upstream) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let upstream = Arc::new(Mutex::new(upstream));
        let proxy = Self { port, upstream: Arc::clone(&upstream) };
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                // Either side may end it in whatever way.
                let upstream = Arc::clone(&upstream);
                tokio::spawn(async move { serve(client, &upstream).await.unwrap_or_default() });
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Where new connections lead to.
    pub fn lead_to(&self, upstream: Upstream) {
        *self.upstream.lock().unwrap() = upstream;
    }
}

async fn serve(mut client: TcpStream, upstream: &Mutex<Upstream>) -> io::Result<()> {
    let current = || *upstream.lock().unwrap();
    let (mut question, mut answer) = ([0; 16_384], [0; 16_384]);
    let first = current();
    let (Upstream::Server(port)
    | Upstream::BreaksOff(port)
    | Upstream::Mute(port)
    | Upstream::Late(port)) = first
    else {
        loop {
            let length = client.read(&mut question).await?;
            if length == 0 {
                return Ok(());
            }
            for _ in question[..length].iter().filter(|byte| **byte == b'*') {
                client.write_all(b"-ERR no upstream host\r\n").await?;
            }
        }
    };
    if let Upstream::Late(_) = first {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut breaks_off, mut mute) = (false, false);
    loop {
        tokio::select! {
            length = client.read(&mut question) => {
                let question = &question[..length?];
                if question.is_empty() {
                    return Ok(());
                }
                breaks_off |= matches!(current(), Upstream::BreaksOff(_))
                    && question.windows(4).any(|word| word == b"EVAL");
                mute |= matches!(current(), Upstream::Mute(_));
                if !mute {
                    server.write_all(question).await?;
                }
            }
            length = server.read(&mut answer) => {
                let answer = &answer[..length?];
                if answer.is_empty() || breaks_off {
                    return Ok(());
                }
                client.write_all(answer).await?;
            }
        }
    }
}
