// matrix-js-sdk with its Rust cryptography: two users, an encrypted room, messages read decrypted before and after a
// restart of the server.

import * as sdk from "matrix-js-sdk";
import { register } from "./lib/accounts.mjs";
import { command, parameters, report, run, until } from "./lib/scenario.mjs";

const { baseUrl, suffix = "" } = parameters;

async function signedIn(name) {
    const account = await register(baseUrl, name);
    // A second device by password: the log-in itself is part of what is tested.
    const login = await sdk.createClient({ baseUrl }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: name },
        password: account.password,
        initial_device_display_name: "js-sdk",
    });
    const client = sdk.createClient({
        baseUrl,
        userId: login.user_id,
        deviceId: login.device_id,
        accessToken: login.access_token,
    });
    await client.initRustCrypto({ useIndexedDB: false });
    await client.startClient({ initialSyncLimit: 20 });
    await until(`${name} in sync`, () => client.getSyncState() === sdk.SyncState.Syncing);
    report("syncing", { user: client.getUserId() });
    return client;
}

/** The clear text of the message with this body that `client` sees in the room, and whether it travelled encrypted. */
async function read(client, roomId, body) {
    return until(`${client.getUserId()} reads "${body}"`, () => {
        for (const event of client.getRoom(roomId)?.getLiveTimeline().getEvents() ?? []) {
            if (event.getType() === "m.room.message" && event.getContent().body === body) {
                return { body, encrypted: event.isEncrypted(), sender: event.getSender(), id: event.getId() };
            }
        }
    });
}

await run(async () => {
    const alice = await signedIn("alice" + suffix);
    const bob = await signedIn("bob" + suffix);

    const { room_id: roomId } = await alice.createRoom({
        preset: sdk.Preset.PrivateChat,
        invite: [bob.getUserId()],
        initial_state: [
            { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
        ],
    });
    await until("the invitation", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
    await bob.joinRoom(roomId);
    await until(
        "alice sees bob joined in an encrypted room",
        async () =>
            alice.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "join" &&
            (await alice.getCrypto().isEncryptionEnabledInRoom(roomId)),
    );

    await alice.sendTextMessage(roomId, "the longhouse is warm");
    report("read", await read(bob, roomId, "the longhouse is warm"));
    await bob.sendTextMessage(roomId, "and the door is open");
    report("read", await read(alice, roomId, "and the door is open"));

    report("before-restart");
    await command("restarted");

    for (const client of [alice, bob]) client.retryImmediately();
    await until("both in sync again", () =>
        [alice, bob].every((client) => client.getSyncState() === sdk.SyncState.Syncing),
    );
    await alice.sendTextMessage(roomId, "after the restart");
    report("read", await read(bob, roomId, "after the restart"));

    // What was said before is still stored: fetched from the server, decrypted by bob with the keys he holds.
    const history = await bob.createMessagesRequest(roomId, null, 50, sdk.Direction.Backward);
    const decrypted = [];
    for (const raw of history.chunk.filter((event) => event.type === "m.room.encrypted")) {
        const event = new sdk.MatrixEvent(raw);
        await event.attemptDecryption(bob.getCrypto());
        decrypted.push(event.getContent().body);
    }
    report("history", { decrypted });
    for (const client of [alice, bob]) client.stopClient();
});
