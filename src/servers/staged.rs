//! A scripted HTTP server for the tests of this folder: real sockets on loopback, pages on cue.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What was asked: `GET /path` or `POST /path body`.
type Asked = Vec<String>;

#[derive(Default)]
struct Script {
    pages: HashMap<String, (u16, String)>,
    asked: Asked,
}

/// The server; dropping it ends it. A path without a page answers 404.
pub(super) struct Staged {
    pub(super) port: u16,
    script: Arc<Mutex<Script>>,
    _tasks: JoinSet<()>,
}

impl Staged {
    pub(super) async fn start(pages: &[(&str, u16, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = Arc::new(Mutex::new(Script::default()));
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&script);
        tasks.spawn(async move {
            let mut calls = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                calls.spawn(answer(stream, Arc::clone(&shared)));
            }
        });
        let staged = Self { port, script, _tasks: tasks };
        for (path, status, page) in pages {
            staged.page(path, *status, page);
        }
        staged
    }

    pub(super) fn page(&self, path: &str, status: u16, page: &str) {
        self.script.lock().unwrap().pages.insert(path.to_owned(), (status, page.to_owned()));
    }

    pub(super) fn no_page(&self, path: &str) {
        self.script.lock().unwrap().pages.remove(path);
    }

    /// What was asked since the last call.
    pub(super) fn asked(&self) -> Asked {
        std::mem::take(&mut self.script.lock().unwrap().asked)
    }
}

async fn answer(stream: TcpStream, script: Arc<Mutex<Script>>) {
    let mut stream = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    stream.read_line(&mut first).await.unwrap();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, page) = {
        let mut script = script.lock().unwrap();
        let line = format!("{method} {path} {}", String::from_utf8_lossy(&body));
        script.asked.push(line.trim_end().to_owned());
        script.pages.get(path).cloned().unwrap_or((404, "nothing here".to_owned()))
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        page.len()
    );
    let whole = [head.as_bytes(), page.as_bytes()].concat();
    // A caller that left is the test's business.
    let _ = stream.get_mut().write_all(&whole).await;
}
