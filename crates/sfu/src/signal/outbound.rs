//! What waits to be sent over one signalling connection, bounded in messages and in bytes: descriptions of a large room are
//! long, and many clients may be slow at once.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use livekit_protocol::signal_response::Message;
use tokio::sync::mpsc;

/// Messages that may wait for a slow client before it is let go.
const MAX_MESSAGES: usize = 512;
/// Bytes that may wait; a single message may be longer when nothing else waits.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The client does not keep up, or its connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signalling connection does not keep up or is gone")]
pub(crate) struct Overrun;

/// The room's end of a connection. Dropping it closes the WebSocket after what was queued is sent.
#[derive(Debug)]
pub(crate) struct Outbound {
    queue: mpsc::Sender<(usize, Message)>,
    bytes: Arc<AtomicUsize>,
}

/// The connection's end.
#[derive(Debug)]
pub(crate) struct Answers {
    queue: mpsc::Receiver<(usize, Message)>,
    bytes: Arc<AtomicUsize>,
}

/// Both ends of a connection's queue.
pub(crate) fn queue() -> (Outbound, Answers) {
    let (sender, receiver) = mpsc::channel(MAX_MESSAGES);
    let bytes = Arc::new(AtomicUsize::new(0));
    let outbound = Outbound {
        queue: sender,
        bytes: Arc::clone(&bytes),
    };
    (outbound, Answers { queue: receiver, bytes })
}

impl Outbound {
    /// Queues a message without waiting.
    pub(crate) fn try_send(&self, message: Message) -> Result<(), Overrun> {
        let length = message.encoded_len();
        let waiting = self.bytes.fetch_add(length, Ordering::Relaxed);
        let fits = waiting == 0 || waiting + length <= MAX_BYTES;
        if fits && self.queue.try_send((length, message)).is_ok() {
            return Ok(());
        }
        self.bytes.fetch_sub(length, Ordering::Relaxed);
        Err(Overrun)
    }
}

impl Answers {
    /// The next message; `None` when the room has no more to say.
    pub(crate) async fn recv(&mut self) -> Option<Message> {
        let (length, message) = self.queue.recv().await?;
        self.bytes.fetch_sub(length, Ordering::Relaxed);
        Some(message)
    }

    /// The next message if it is there already.
    #[cfg(test)]
    pub(crate) fn try_recv(&mut self) -> Option<Message> {
        let (length, message) = self.queue.try_recv().ok()?;
        self.bytes.fetch_sub(length, Ordering::Relaxed);
        Some(message)
    }

    /// Whether the room has let go of the connection.
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use livekit_protocol::{JoinResponse, ParticipantInfo};

    use super::*;

    fn message(length: usize) -> Message {
        Message::Join(JoinResponse {
            participant: Some(ParticipantInfo {
                metadata: "m".repeat(length),
                ..ParticipantInfo::default()
            }),
            ..JoinResponse::default()
        })
    }

    #[test]
    fn bytes_are_bounded_and_given_back() {
        let (outbound, mut answers) = queue();
        let large = MAX_BYTES / 4;
        let sent = (0..).take_while(|_| outbound.try_send(message(large)).is_ok()).count();
        assert_eq!(sent, 3, "each is a little longer than its text");
        assert!(answers.try_recv().is_some());
        assert_eq!(outbound.try_send(message(large)), Ok(()));
        assert_eq!(outbound.try_send(message(large)), Err(Overrun));
        assert_eq!(outbound.try_send(message(10)), Ok(()), "a refused one leaves no trace");
    }

    #[test]
    fn one_message_may_be_longer_than_all_that_may_wait() {
        let (outbound, _answers) = queue();
        assert_eq!(outbound.try_send(message(MAX_BYTES * 2)), Ok(()));
        assert_eq!(outbound.try_send(message(1)), Err(Overrun));
    }

    #[test]
    fn messages_are_bounded() {
        let (outbound, _answers) = queue();
        let sent = (0..)
            .take_while(|_| outbound.try_send(Message::Pong(1)).is_ok())
            .count();
        assert_eq!(sent, MAX_MESSAGES);
    }
}
