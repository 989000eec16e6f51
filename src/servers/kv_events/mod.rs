//! Follows what vLLM and SGLang publish about their KV cache: which blocks came, which went.
//!
//! The servers publish over ZeroMQ. [`follow`] connects, hears, translates to our own block hashes and hands on
//! [`KvChange`]s. A view that may have missed something is void: whenever a connection ends, a batch is missing,
//! or the changes were not taken in time, [`KvChange::Cleared`] comes before anything else.
//!
//! Must not know who keeps the changes, or what for.

mod chain;
mod counts;
mod decode;
mod msgpack;
mod outlet;
#[cfg(test)]
mod tests;
mod zmtp;

pub use counts::{Counts, Tally};

use crate::{config::KvEndpoint, ids::ServerId, snapshot::KvChange};
use chain::{BLOCKS_MAX, Chain};
use decode::Batch;
use outlet::Outlet;
use std::{convert::Infallible, io, sync::Arc, time::Duration};
use tokio::{
    net::TcpStream,
    sync::mpsc::Sender,
    task::yield_now,
    time::{sleep, timeout},
};
use zmtp::{Parts, Subscriber, ZmtpError};

/// First and longest pause between attempts to connect. A restarted server is heard again this soon.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A connection must be made within this.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A quiet connection is asked by the kernel whether it still stands: after this much silence, at these
/// distances, so many times. Engines that have nothing to do publish nothing.
const QUIET: Duration = Duration::from_secs(30);
const QUIET_AGAIN: Duration = Duration::from_secs(10);
const QUIET_ASKED: u32 = 3;

/// Other tasks get their turn after this many events of one batch.
const EVENTS_AT_ONCE: usize = 256;

/// Why a connection ended, and nothing is followed until the next.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("cannot connect within {CONNECT_LIMIT:?}")]
    Silent,
    #[error(transparent)]
    Zmtp(#[from] ZmtpError),
    #[error("its messages are not those of KV events; is this the right port?")]
    Foreign,
}

/// Follows the KV events of one server and sends what changes, with the server's name, until the receiver is
/// gone. Dropping the future ends it, too; then nothing more is sent, not even that the view is void.
///
/// * It connects again whenever the connection ends, at pauses from 100 ms that double up to 5 s. Each change
///   between followed and not followed is one log line.
/// * When `changes` is full it waits a tenth of a second, then drops what it has and owes
///   [`KvChange::Cleared`], which is sent as soon as there is room and before anything else.
/// * What was stored before it connected, or before a view was lost, is not known, nor what stands upon it.
///
/// At most seven eighths of 2^20 blocks are followed, in at most 35 MiB. `counts` grows as it goes on.
pub async fn follow(
    server: ServerId,
    endpoint: KvEndpoint,
    changes: Sender<(ServerId, KvChange)>,
    counts: Arc<Counts>,
) {
    let gone = changes.clone();
    let outlet = Outlet::new(server.clone(), changes, Arc::clone(&counts));
    let follower = Follower {
        server,
        endpoint,
        chain: Chain::new(BLOCKS_MAX, Arc::clone(&counts)),
        counts,
        outlet,
        told: None,
        expected: None,
        heard: false,
    };
    // Neither is needed any more once the other ends.
    tokio::select! {
        () = gone.closed() => {}
        () = follower.run() => {}
    }
}

struct Follower {
    server: ServerId,
    endpoint: KvEndpoint,
    chain: Chain,
    counts: Arc<Counts>,
    outlet: Outlet,
    /// What the log was told last: that events are followed, or not.
    told: Option<bool>,
    /// The number of the next batch, once one has come.
    expected: Option<u64>,
    /// A batch came on this connection.
    heard: bool,
}

impl Follower {
    async fn run(mut self) {
        let mut pause = PAUSE_FIRST;
        loop {
            let Err(lost) = self.session().await;
            self.tell(Some(&lost));
            // What was heard on this connection may change unheard from now on.
            self.chain.forget();
            self.outlet.owe();
            if self.heard {
                pause = PAUSE_FIRST;
            }
            self.outlet.settling(sleep(pause)).await;
            pause = longer(pause);
        }
    }

    /// One connection, from its beginning to its end.
    async fn session(&mut self) -> Result<Infallible, Lost> {
        (self.heard, self.expected) = (false, None);
        let stream = self.outlet.settling(connect(&self.endpoint)).await?;
        let mut subscriber = self.outlet.settling(Subscriber::greet(stream)).await?;
        self.counts.connections.add(1);
        self.tell(None);
        loop {
            let parts = self.outlet.settling(subscriber.next()).await?;
            self.take(&parts).await?;
        }
    }

    /// One message: topic, number of the batch, and its events.
    async fn take(&mut self, parts: &Parts) -> Result<(), Lost> {
        let [_topic, number, payload] = parts.as_slice() else { return Err(Lost::Foreign) };
        let number: [u8; 8] = number.as_slice().try_into().map_err(|_| Lost::Foreign)?;
        let number = u64::from_be_bytes(number);
        self.heard = true;
        self.counts.batches.add(1);
        let mut out = Vec::new();
        if self.expected.is_some_and(|expected| expected != number) {
            tracing::debug!(server = %self.server, expected = self.expected, number, "KV events are missing");
            self.chain.lose(&mut out);
        }
        self.expected = Some(number.wrapping_add(1));
        self.read(payload, &mut out).await;
        if !self.outlet.send(out).await {
            // The receiver has a hole. What stands upon it would be of no use there.
            self.chain.forget();
        }
        Ok(())
    }

    async fn read(&mut self, payload: &[u8], out: &mut Vec<KvChange>) {
        let ended = match Batch::open(payload) {
            Err(malformed) => Err(malformed),
            Ok(batch) => {
                let mut ended = Ok(());
                for (at, event) in batch.enumerate() {
                    match event {
                        Ok(event) => self.chain.apply(event, out),
                        Err(malformed) => ended = Err(malformed),
                    }
                    if at % EVENTS_AT_ONCE == EVENTS_AT_ONCE - 1 {
                        yield_now().await;
                    }
                }
                ended
            }
        };
        if let Err(malformed) = ended {
            tracing::debug!(server = %self.server, %malformed, "a batch of KV events cannot be read");
            self.counts.unreadable.add(1);
            self.chain.lose(out);
        }
    }

    /// One line for each change.
    fn tell(&mut self, lost: Option<&Lost>) {
        let followed = lost.is_none();
        if self.told.replace(followed) == Some(followed) {
            return;
        }
        let (server, endpoint) = (&self.server, &self.endpoint);
        match lost {
            None => tracing::info!(%server, %endpoint, "KV events are followed"),
            Some(why) => tracing::warn!(%server, %endpoint, %why, "KV events are not followed"),
        }
    }
}

/// The pause after one that did not help.
fn longer(pause: Duration) -> Duration {
    pause.saturating_mul(2).min(PAUSE_MAX)
}

async fn connect(endpoint: &KvEndpoint) -> Result<TcpStream, Lost> {
    let address = (endpoint.host.as_str(), endpoint.port);
    let stream = timeout(CONNECT_LIMIT, TcpStream::connect(address))
        .await
        .map_err(|_| Lost::Silent)?
        .map_err(Lost::Connect)?;
    keep_alive(&stream).map_err(Lost::Connect)?;
    Ok(stream)
}

/// A host that vanished closes nothing; without this its last view would stay for ever.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, QUIET)?;
    sockopt::set_tcp_keepintvl(stream, QUIET_AGAIN)?;
    Ok(sockopt::set_tcp_keepcnt(stream, QUIET_ASKED)?)
}
