//! TURN over a byte stream (RFC 8656 §3.1): where one message ends, and the two tasks that serve a connection.
//!
//! Knows nothing of allocations: whole messages go to the owner task, what comes back is written. A client that does not
//! read loses packets, never holds anyone up.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{OwnedSemaphorePermit, mpsc},
};
use tokio_util::sync::CancellationToken;

use crate::{
    message::{HEADER_LEN, MAGIC_COOKIE},
    server::{FiveTuple, Transport},
};

/// Packets waiting to be written to one client; what does not fit is dropped.
const OUTGOING: usize = 256;
/// Bytes read at a time.
const READ_LEN: usize = 16 * 1024;
/// A write that makes no progress for this long means that the client is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a connection tells the owner task.
#[derive(Debug)]
pub(crate) enum Event {
    Connected(FiveTuple, Connection),
    Message(FiveTuple, BytesMut),
    Disconnected(FiveTuple),
}

/// The owner task's end of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) outgoing: mpsc::Sender<Bytes>,
    /// Closes the connection; dropped with it.
    pub(crate) close: CancellationToken,
}

/// The stream carries something else than STUN and ChannelData; it cannot be resynchronised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotTurn;

/// Takes the next whole message off the front of `stream`, padding included; `None` until more has arrived.
pub(crate) fn split_message(stream: &mut BytesMut) -> Result<Option<BytesMut>, NotTurn> {
    let Some(&[first, _, high, low]) = stream.first_chunk::<4>() else {
        return match stream.first() {
            Some(0x80..) => Err(NotTurn),
            _ => Ok(None),
        };
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let total = match first {
        0x00..=0x03 if length.is_multiple_of(4) => {
            let cookie = stream.get(4..8);
            if cookie.is_some_and(|cookie| cookie != MAGIC_COOKIE.to_be_bytes()) {
                return Err(NotTurn);
            }
            HEADER_LEN + length
        }
        // RFC 8656 §12.5: over streams ChannelData is padded.
        0x40..=0x7F => 4 + length.next_multiple_of(4),
        _ => return Err(NotTurn),
    };
    Ok((stream.len() >= total).then(|| stream.split_to(total)))
}

/// Serves one connection until either side closes it. `permit` counts it.
pub(crate) async fn serve<S>(
    stream: S,
    client: SocketAddr,
    server: SocketAddr,
    events: mpsc::Sender<Event>,
    permit: OwnedSemaphorePermit,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let tuple = FiveTuple {
        client,
        server,
        transport: Transport::Tcp,
    };
    let (outgoing, incoming) = mpsc::channel(OUTGOING);
    let close = shutdown.child_token();
    let connection = Connection {
        outgoing,
        close: close.clone(),
    };
    if events.send(Event::Connected(tuple, connection)).await.is_err() {
        return;
    }
    let (reader, writer) = tokio::io::split(stream);
    tokio::join!(read(reader, tuple, &events, &close), write(writer, incoming, &close));
    // Fails only when the owner task is gone, and then nobody needs to know.
    let _ = events.send(Event::Disconnected(tuple)).await;
    drop(permit);
}

async fn read<S: AsyncRead>(
    mut stream: ReadHalf<S>,
    tuple: FiveTuple,
    events: &mpsc::Sender<Event>,
    close: &CancellationToken,
) {
    let mut buffer = BytesMut::new();
    let reading = async {
        loop {
            buffer.reserve(READ_LEN);
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            loop {
                match split_message(&mut buffer) {
                    // Waiting here is what slows a client down that sends faster than the relay handles.
                    Ok(Some(message)) => {
                        if events.send(Event::Message(tuple, message)).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(NotTurn) => return,
                }
            }
        }
    };
    close.run_until_cancelled(reading).await;
    close.cancel();
}

async fn write<S: AsyncWrite>(
    mut stream: WriteHalf<S>,
    mut incoming: mpsc::Receiver<Bytes>,
    close: &CancellationToken,
) {
    let mut packets = Vec::new();
    let mut run = BytesMut::new();
    let writing = async {
        while incoming.recv_many(&mut packets, OUTGOING).await > 0 {
            run.clear();
            packets
                .drain(..)
                .for_each(|packet: Bytes| run.extend_from_slice(&packet));
            let written = tokio::time::timeout(WRITE_TIMEOUT, async {
                stream.write_all(&run).await?;
                stream.flush().await
            });
            if !matches!(written.await, Ok(Ok(()))) {
                return;
            }
        }
    };
    close.run_until_cancelled(writing).await;
    close.cancel();
    let _ = tokio::time::timeout(WRITE_TIMEOUT, stream.shutdown()).await;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Class, Encoder, Method, TransactionId};

    #[test]
    fn takes_messages_apart() {
        let request = Encoder::new(Class::Request, Method::Binding, TransactionId([7; 12]))
            .data(&[1; 5])
            .finish();
        let channel_data = [0x40, 1, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0];
        let wire = [&request[..], &channel_data[..], &request[..]].concat();
        for step in 1..wire.len() {
            let mut stream = BytesMut::new();
            let mut seen: Vec<Vec<u8>> = Vec::new();
            for piece in wire.chunks(step) {
                stream.extend_from_slice(piece);
                while let Some(message) = split_message(&mut stream).expect("well formed") {
                    seen.push(message.to_vec());
                }
            }
            assert_eq!(
                seen,
                [request.clone(), channel_data.to_vec(), request.clone()],
                "in pieces of {step}"
            );
        }
    }

    #[test]
    fn refuses_other_protocols_early() {
        for hostile in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01\x02\x00",
            b"\x00\x01\x00\x03",
            b"\x80",
            b"\x00\x01\x00\x00abcd",
        ] {
            let refused = split_message(&mut BytesMut::from(hostile)) == Err(NotTurn);
            // `G` is 0x47, a channel number: such a stream ends when what follows makes no sense.
            assert!(refused || hostile[0] == b'G', "{hostile:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_streams_are_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut stream = BytesMut::from(&bytes[..]);
            while let Ok(Some(message)) = split_message(&mut stream) {
                prop_assert!(message.len() >= 4);
            }
        }
    }
}
