//! The task of one WebSocket: carries requests to the room and answers back, notices silence and slowness.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use livekit_protocol::{signal_request, signal_response};
use tokio::{sync::mpsc, time};
use tracing::debug;

use super::codec::{self, CodecError, Encoding};
use crate::{
    clock,
    room::{Command, ConnectionId, Join, RoomLink},
};

/// Messages that may wait for a slow client before it is let go.
const OUTBOUND: usize = 512;
/// Interval of WebSocket pings; they keep address translators and proxies awake.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A client that does not take a message for this long is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The room's end of a connection: answers go in here. Dropping it closes the WebSocket after what was queued is sent.
pub(crate) type Outbound = mpsc::Sender<signal_response::Message>;

/// Joins `room` with the authenticated parameters and carries messages until one side ends.
pub(crate) async fn run(
    mut socket: WebSocket,
    room: RoomLink,
    join: impl FnOnce(ConnectionId, Outbound) -> Join,
    silence: Duration,
) {
    let (outbound, mut answers) = mpsc::channel(OUTBOUND);
    let id = ConnectionId::next();
    if room.send(Command::Join(Box::new(join(id, outbound)))).await.is_err() {
        close(&mut socket, "room closed").await;
        return;
    }
    let mut encoding = Encoding::Binary;
    let mut ping = time::interval(PING_INTERVAL);
    ping.reset();
    let mut heard = clock::now();
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
            frame = socket.recv() => {
                let Some(Ok(frame)) = frame else { break };
                heard = clock::now();
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
