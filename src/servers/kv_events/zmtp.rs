//! A subscriber of ZeroMQ's wire protocol, ZMTP 3.0 and 3.1, without ZeroMQ: it hears what one publisher says.
//!
//! NULL mechanism only, and all topics. What the peer sends is bounded in bytes, parts and time, and takes
//! memory only as it arrives. Must not know what the messages mean.

use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    time::timeout,
};

/// Most bytes of one message, all parts together. A publisher's batch is what one step of its engine changed:
/// some ten thousand tokens, well below a mebibyte.
pub(super) const MESSAGE_MAX: u64 = 16 << 20;

/// Most parts of one message. Publishers send three.
const PARTS_MAX: usize = 8;

/// Most bytes of a command. The longest that publishers send introduces them, in some fifty.
const COMMAND_MAX: u64 = 8 << 10;

/// Both sides must have introduced themselves within this.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// A message must be complete this long after its first byte.
const MESSAGE_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of a greeting.
const GREETING: usize = 64;

/// Flags in front of a frame; the others are reserved and zero.
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Most of a peer's words that are repeated in a message.
const TOLD_MAX: usize = 80;

/// Most bytes of a ping that come back in the pong.
const PING_CONTEXT_MAX: usize = 16;

/// A message's parts, in order; at least one.
pub(super) type Parts = Vec<Vec<u8>>;

/// Why nothing more can be heard on a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ZmtpError {
    /// The socket says so.
    #[error("connection broke: {0}")]
    Broken(#[from] io::Error),
    /// Something else listens there, or a ZeroMQ of before 2013.
    #[error("the peer does not speak ZMTP 3; is this the port of the KV events?")]
    Foreign,
    /// The peer wants to know who we are.
    #[error("the peer wants the security mechanism {0}; only NULL is supported")]
    Mechanism(String),
    /// The peer is no publisher.
    #[error("the peer is a {0} socket, not PUB; is this the port of the KV events?")]
    Socket(String),
    /// The peer will not have us.
    #[error("the peer refused: {0}")]
    Refused(String),
    /// A message or command beyond its bound.
    #[error("the peer sent {0} bytes at once; at most {1} are taken")]
    TooLong(u64, u64),
    /// A message of too many parts.
    #[error("the peer sent a message of more than {PARTS_MAX} parts")]
    TooMany,
    /// A frame that ZMTP does not have.
    #[error("the peer broke the rules of ZMTP")]
    Rules,
    /// The peer began something and did not end it.
    #[error("the peer did not finish {0} within {1:?}")]
    Slow(&'static str, Duration),
}

/// A connection whose peer publishes to us.
pub(super) struct Subscriber<S> {
    io: BufReader<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Subscriber<S> {
    /// Introduces both sides and subscribes to everything.
    pub(super) async fn greet(stream: S) -> Result<Self, ZmtpError> {
        let mut subscriber = Self { io: BufReader::new(stream) };
        timeout(HANDSHAKE_LIMIT, subscriber.shake_hands())
            .await
            .map_err(|_| ZmtpError::Slow("its introduction", HANDSHAKE_LIMIT))??;
        Ok(subscriber)
    }

    /// The next message, however long it takes to come. Dropping the future in the middle of one loses the
    /// place in the stream: the connection is of no use then.
    pub(super) async fn next(&mut self) -> Result<Parts, ZmtpError> {
        loop {
            // An idle engine publishes nothing for hours; what begins must end.
            let flags = self.io.read_u8().await?;
            let message = timeout(MESSAGE_LIMIT, self.message(flags))
                .await
                .map_err(|_| ZmtpError::Slow("a message", MESSAGE_LIMIT))??;
            if let Some(parts) = message {
                return Ok(parts);
            }
        }
    }

    async fn shake_hands(&mut self) -> Result<(), ZmtpError> {
        self.send(&greeting()).await?;
        let mut theirs = [0; GREETING];
        self.io.read_exact(&mut theirs).await?;
        check_greeting(&theirs)?;
        self.send(&command(b"READY", &property(b"Socket-Type", b"SUB"))).await?;
        let flags = self.io.read_u8().await?;
        if flags & !LONG != COMMAND {
            return Err(ZmtpError::Rules);
        }
        let body = self.body(flags, COMMAND_MAX).await?;
        check_ready(&body)?;
        // A message of one byte: subscribe to all that begins with nothing. ZMTP 3.1 has a command for it, but
        // its peers take the message too, as we introduce ourselves with 3.0.
        self.send(&[0, 1, 1]).await
    }

    /// What begins with a frame of these flags: a message, or a command, which is answered and gives `None`.
    async fn message(&mut self, mut flags: u8) -> Result<Option<Parts>, ZmtpError> {
        let mut parts = Parts::new();
        let mut left = MESSAGE_MAX;
        loop {
            if flags & !(MORE | LONG | COMMAND) != 0 {
                return Err(ZmtpError::Rules);
            }
            if flags & COMMAND != 0 {
                let body = self.body(flags, COMMAND_MAX).await?;
                self.obey(&body).await?;
                if parts.is_empty() {
                    return Ok(None);
                }
            } else {
                let part = self.body(flags, left).await?;
                left = left.saturating_sub(part.len() as u64);
                parts.push(part);
                if flags & MORE == 0 {
                    return Ok(Some(parts));
                }
                if parts.len() >= PARTS_MAX {
                    return Err(ZmtpError::TooMany);
                }
            }
            flags = self.io.read_u8().await?;
        }
    }

    /// A frame's size and what follows. Memory grows with what has come, not with what was announced.
    async fn body(&mut self, flags: u8, most: u64) -> Result<Vec<u8>, ZmtpError> {
        let size = match flags & LONG {
            0 => u64::from(self.io.read_u8().await?),
            _ => self.io.read_u64().await?,
        };
        if size > most {
            return Err(ZmtpError::TooLong(size, most));
        }
        let mut body = Vec::new();
        (&mut self.io).take(size).read_to_end(&mut body).await?;
        if (body.len() as u64) < size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(body)
    }

    async fn obey(&mut self, body: &[u8]) -> Result<(), ZmtpError> {
        match name_and_rest(body).ok_or(ZmtpError::Rules)? {
            // Two bytes say how long the peer waits; the pong brings back what stands behind them.
            (b"PING", rest) => {
                let context = rest.get(2..).ok_or(ZmtpError::Rules)?;
                let context = context.get(..PING_CONTEXT_MAX).unwrap_or(context);
                self.send(&command(b"PONG", context)).await
            }
            (b"ERROR", reason) => Err(refused(reason)),
            _ => Ok(()),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), ZmtpError> {
        self.io.write_all(bytes).await?;
        Ok(self.io.flush().await?)
    }
}

/// We are a client of ZMTP 3.0 with the mechanism NULL.
fn greeting() -> Vec<u8> {
    let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0];
    bytes.extend_from_slice(b"NULL");
    bytes.resize(GREETING, 0);
    bytes
}

fn check_greeting(theirs: &[u8; GREETING]) -> Result<(), ZmtpError> {
    let [0xff, _, _, _, _, _, _, _, _, 0x7f, major, _minor, rest @ ..] = theirs else {
        return Err(ZmtpError::Foreign);
    };
    if *major < 3 {
        return Err(ZmtpError::Foreign);
    }
    let mechanism = rest.get(..20).unwrap_or_default();
    let mechanism = mechanism.split(|byte| *byte == 0).next().unwrap_or_default();
    if mechanism != b"NULL" {
        return Err(ZmtpError::Mechanism(told(mechanism)));
    }
    Ok(())
}

fn check_ready(body: &[u8]) -> Result<(), ZmtpError> {
    let (name, mut rest) = name_and_rest(body).ok_or(ZmtpError::Rules)?;
    match name {
        b"READY" => {}
        b"ERROR" => return Err(refused(rest)),
        _ => return Err(ZmtpError::Rules),
    }
    while !rest.is_empty() {
        let (name, value, after) = property_and_rest(rest).ok_or(ZmtpError::Rules)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return match value {
                b"PUB" | b"XPUB" => Ok(()),
                other => Err(ZmtpError::Socket(told(other))),
            };
        }
        rest = after;
    }
    Err(ZmtpError::Socket("nameless".to_owned()))
}

/// A short frame with a command; `rest` is short.
fn command(name: &[u8], rest: &[u8]) -> Vec<u8> {
    let size = (1 + name.len() + rest.len()) as u8;
    let mut bytes = vec![COMMAND, size, name.len() as u8];
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(rest);
    bytes
}

fn property(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![name.len() as u8];
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
    bytes.extend_from_slice(value);
    bytes
}

/// Text behind one byte that tells its length, and what follows it.
fn name_and_rest(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

fn property_and_rest(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = name_and_rest(bytes)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (value, rest) = rest.split_at_checked(length)?;
    Some((name, value, rest))
}

fn refused(reason: &[u8]) -> ZmtpError {
    ZmtpError::Refused(told(name_and_rest(reason).map_or(reason, |(text, _)| text)))
}

/// A peer's words, fit for a log line.
fn told(bytes: &[u8]) -> String {
    let bytes = bytes.get(..TOLD_MAX).unwrap_or(bytes);
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}

#[cfg(test)]
#[path = "zmtp_tests.rs"]
pub(super) mod tests;
