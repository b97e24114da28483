"""mautrix, the library under the mautrix bridges: logs in, syncs with its own loop, sends and receives, stores account
data, uploads and downloads."""

from mautrix.client import Client
from mautrix.types import EventType, Filter, Format, MessageType, RoomFilter, StateFilter, TextMessageEventContent
from mautrix.types import RoomCreatePreset

from scenario import PARAMETERS, report, run, until

BASE_URL = PARAMETERS["baseUrl"]
PASSWORD = PARAMETERS["password"]


async def signed_in(name):
    """A client that logged in with the password, and knows from the server who it is."""
    client = Client(base_url=BASE_URL)
    await client.login(identifier=name, password=PASSWORD, device_name="mautrix")
    who = await client.whoami()
    report("signed-in", user=who.user_id, device=who.device_id == client.device_id)
    return client


async def main():
    erin, frank = [await signed_in(name) for name in ("erin", "frank")]
    heard = {"erin": [], "frank": []}
    for name, client in (("erin", erin), ("frank", frank)):
        client.add_event_handler(
            EventType.ROOM_MESSAGE,
            lambda event, name=name: hear(heard[name], event),
        )
        client.start(Filter(room=RoomFilter(state=StateFilter(lazy_load_members=True))))

    room = await erin.create_room(
        name="Workshop", preset=RoomCreatePreset.PRIVATE, invitees=[frank.mxid], initial_state=[]
    )
    await frank.join_room(room)
    members = await erin.get_joined_members(room)
    name = await frank.get_state_event(room, EventType.ROOM_NAME)
    report("room", name=name.name, members=sorted(members))

    sent = await erin.send_text(room, "pass the plane", html="pass the <b>plane</b>")
    await until("frank hears erin", lambda: (erin.mxid, "pass the plane") in heard["frank"])
    report("heard", by="frank", body="pass the plane")
    await frank.send_receipt(room, sent)
    await frank.set_typing(room, timeout=5_000)
    answer = TextMessageEventContent(
        msgtype=MessageType.TEXT, body="here", format=Format.HTML, formatted_body="<i>here</i>"
    )
    answer.set_reply(await frank.get_event(room, sent))
    replied = await frank.send_message(room, answer)
    await until("erin hears frank", lambda: any(sender == frank.mxid for sender, _ in heard["erin"]))
    event = await erin.get_event(room, replied)
    report("heard", by="erin", reply_to=event.content.get_reply_to() == sent)

    await erin.react(room, replied, "👍")
    await frank.redact(room, replied, reason="found it")
    redacted = await erin.get_event(room, replied)
    report("redacted", body=redacted.content.serialize().get("body"))

    await erin.set_account_data("org.longhouse.tools", {"plane": 1})
    kept = await erin.get_account_data("org.longhouse.tools")
    report("account-data", kept=kept)

    content = bytes(range(256)) * 32
    uri = await erin.upload_media(content, mime_type="application/octet-stream", filename="plane.bin")
    report("media", same=await frank.download_media(uri) == content)

    for client in (erin, frank):
        client.stop()
        await client.logout()
        await client.api.session.close()


async def hear(heard, event):
    """Notes a message."""
    heard.append((event.sender, event.content.body))


run(main)
