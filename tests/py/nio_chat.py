"""matrix-nio: registers, logs in, syncs, sends and receives, uploads and downloads."""

import io

import nio

from scenario import PARAMETERS, report, run, until

BASE_URL = PARAMETERS["baseUrl"]
SUFFIX = PARAMETERS.get("suffix", "")
PASSWORD = "correct horse battery staple"


def good(answer):
    """The answer, unless it is one of the library's errors."""
    if isinstance(answer, nio.ErrorResponse):
        raise RuntimeError(f"{type(answer).__name__}: {answer}")
    return answer


async def signed_in(name):
    """A user who registered, logged out and logged in again with the password."""
    client = nio.AsyncClient(BASE_URL, name)
    registered = good(await client.register(name, PASSWORD))
    good(await client.logout())
    client.user_id = registered.user_id
    login = good(await client.login(PASSWORD, device_name="matrix-nio"))
    report("signed-in", user=login.user_id)
    return client


async def main():
    carol = await signed_in("carol" + SUFFIX)
    dave = await signed_in("dave" + SUFFIX)
    heard = {carol: [], dave: []}
    for client in (carol, dave):
        client.add_event_callback(
            lambda room, event, client=client: heard[client].append((event.sender, event.body)),
            nio.RoomMessageText,
        )
        good(await client.sync(timeout=0, full_state=True))

    room = good(await carol.room_create(name="Hearth", topic="warm", invite=[dave.user_id])).room_id
    good(await dave.sync(timeout=10_000))
    if room not in dave.invited_rooms:
        raise RuntimeError(f"dave is not invited: {dave.invited_rooms}")
    good(await dave.join(room))
    good(await carol.sync(timeout=10_000))
    good(await dave.sync(timeout=10_000))
    await until("both see both joined", lambda: all_joined(carol, dave, room))
    report("room", name=dave.rooms[room].name, topic=dave.rooms[room].topic, members=dave.rooms[room].joined_count)

    good(await dave.room_typing(room, True, timeout=20_000))
    sent = good(await carol.room_send(room, "m.room.message", {"msgtype": "m.text", "body": "soup is ready"}))
    await until("dave hears carol", lambda: heard_after_sync(dave, heard, (carol.user_id, "soup is ready")))
    report("heard", by="dave", body="soup is ready")
    good(await dave.room_read_markers(room, fully_read_event=sent.event_id, read_event=sent.event_id))
    good(await dave.room_send(room, "m.room.message", {"msgtype": "m.text", "body": "coming"}))
    await until("carol hears dave", lambda: heard_after_sync(carol, heard, (dave.user_id, "coming")))
    report("heard", by="carol", body="coming")

    history = good(await dave.room_messages(room, start=dave.next_batch, limit=50))
    report("history", bodies=[event.body for event in history.chunk if isinstance(event, nio.RoomMessageText)])

    content = bytes(range(256)) * 16
    upload, _ = await carol.upload(
        lambda *_: io.BytesIO(content), content_type="application/octet-stream", filename="soup.bin", filesize=len(content)
    )
    downloaded = good(await dave.download(good(upload).content_uri))
    report("media", same=downloaded.body == content, type=downloaded.content_type)

    for client in (carol, dave):
        good(await client.logout())
        await client.close()


async def all_joined(carol, dave, room):
    """Whether both clients know both members, after one more sync each."""
    for client in (carol, dave):
        good(await client.sync(timeout=0))
    return all(client.rooms[room].joined_count == 2 for client in (carol, dave) if room in client.rooms)


async def heard_after_sync(client, heard, message):
    """Whether a message arrived, after one more sync."""
    good(await client.sync(timeout=2_000))
    return message in heard[client]


run(main)
