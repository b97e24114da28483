//! The task of one WebSocket: carries requests to the room and answers back, notices silence and slowness.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use livekit_protocol::signal_request;
use tokio::time;
use tracing::{debug, warn};

use super::{
    allowance::{self, Allowance, Spent},
    codec::{self, CodecError, Encoding},
    outbound::{self, Outbound},
};
use crate::{
    clock,
    room::{Command, ConnectionId, Join, RoomLink},
};

/// Interval of WebSocket pings; they keep address translators and proxies awake.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A client that does not take a message for this long is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Joins `room` with the authenticated parameters and carries messages until one side ends.
pub(crate) async fn run(
    mut socket: WebSocket,
    room: RoomLink,
    join: impl FnOnce(ConnectionId, Outbound) -> Join,
    silence: Duration,
) {
    let (outbound, mut answers) = outbound::queue();
    let id = ConnectionId::next();
    if room.send(Command::Join(Box::new(join(id, outbound)))).await.is_err() {
        close(&mut socket, "room closed").await;
        return;
    }
    let mut encoding = Encoding::Binary;
    let mut ping = time::interval(PING_INTERVAL);
    ping.reset();
    let mut heard = clock::now();
    let mut allowance = Allowance::new(heard);
    // Nothing is read before: what a client says beyond its allowance waits in its own buffers.
    let mut read_from = None;
    loop {
        tokio::select! {
            biased;
            answer = answers.recv() => {
                let Some(answer) = answer else {
                    close(&mut socket, "").await;
                    return;
                };
                let frame = match encoding {
                    Encoding::Binary => Message::Binary(codec::encode_binary(answer).into()),
                    Encoding::Json => match codec::encode_json(answer) {
                        Ok(text) => Message::Text(text.into()),
                        Err(error) => {
                            debug!(%error, "a signalling message has no JSON form");
                            continue;
                        }
                    },
                };
                if !send(&mut socket, frame).await {
                    break;
                }
            }
            () = time::sleep_until(read_from.unwrap_or(heard).into()), if read_from.is_some() => read_from = None,
            frame = socket.recv(), if read_from.is_none() => {
                let Some(Ok(frame)) = frame else { break };
                heard = clock::now();
                match allowance.spend(length(&frame), heard) {
                    Spent::Within => {}
                    Spent::Exceeded(until) => {
                        warn!(limit = allowance::NAME, connection = ?id, "rate limit reached: the connection is slowed down");
                        metrics::counter!("sfu_signal_limited_total").increment(1);
                        read_from = Some(until);
                    }
                    Spent::StillExceeded(until) => read_from = Some(until),
                    Spent::Abused => {
                        warn!(limit = allowance::NAME, connection = ?id, "rate limit exceeded for too long: the connection is ended");
                        // The room tells the client, which then finds the connection closed.
                        if room.send(Command::Expel { connection: id }).await.is_err() {
                            close(&mut socket, "room closed").await;
                            return;
                        }
                        read_from = Some(heard + WRITE_TIMEOUT);
                        continue;
                    }
                }
                match request(&frame, &mut encoding) {
                    Ok(None) if matches!(frame, Message::Close(_)) => break,
                    Ok(None) => {}
                    Ok(Some(message)) => {
                        let message = Box::new(message);
                        if room.send(Command::Signal { connection: id, message }).await.is_err() {
                            close(&mut socket, "room closed").await;
                            return;
                        }
                    }
                    Err(error) => {
                        debug!(%error, "unreadable signalling message");
                        metrics::counter!("sfu_signal_unreadable_total").increment(1);
                        close(&mut socket, "unreadable message").await;
                        break;
                    }
                }
            }
            _ = ping.tick() => {
                if clock::now().duration_since(heard) > silence.max(PING_INTERVAL + Duration::from_secs(1)) {
                    debug!("signalling connection fell silent");
                    break;
                }
                if !send(&mut socket, Message::Ping(axum::body::Bytes::new())).await {
                    break;
                }
            }
        }
    }
    // A room that is gone needs no notice.
    let _ = room.send(Command::Closed { connection: id }).await;
}

fn length(frame: &Message) -> usize {
    match frame {
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        Message::Text(text) => text.len(),
        Message::Close(_) => 0,
    }
}

fn request(frame: &Message, encoding: &mut Encoding) -> Result<Option<signal_request::Message>, CodecError> {
    match frame {
        Message::Binary(bytes) => {
            *encoding = Encoding::Binary;
            codec::decode_binary(bytes)
        }
        Message::Text(text) => {
            *encoding = Encoding::Json;
            codec::decode_json(text)
        }
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => Ok(None),
    }
}

async fn send(socket: &mut WebSocket, frame: Message) -> bool {
    matches!(time::timeout(WRITE_TIMEOUT, socket.send(frame)).await, Ok(Ok(())))
}

async fn close(socket: &mut WebSocket, reason: &'static str) {
    // 1000: the session ended as told before in a leave message.
    send(
        socket,
        Message::Close(Some(CloseFrame {
            code: 1000,
            reason: reason.into(),
        })),
    )
    .await;
}
