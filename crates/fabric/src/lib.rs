//! Datagram and stream sockets for media: batched IO, and the in-process switch between addresses that live in this process.
