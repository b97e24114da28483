// The page around the Element Call widget, as Element Web is around it: a signed-in client of the server with its own
// Rust cryptography, and the widget API's driver that lets the widget act through that client.

import * as sdk from "matrix-js-sdk";
import { ClientWidgetApi, OpenIDRequestState, Widget, WidgetDriver } from "matrix-widget-api";

let client;
let widget;

/** The widget API's event form of an event of the library, decrypted where it was encrypted. */
const raw = (event) => event.getEffectiveEvent();

class Driver extends WidgetDriver {
    constructor(roomId) {
        super();
        this.roomId = roomId;
    }

    // The call widget is the client's own: it gets what it asks for.
    async validateCapabilities(requested) {
        return requested;
    }

    async sendEvent(type, content, stateKey = null, roomId = null) {
        const room = roomId ?? this.roomId;
        if (stateKey !== null) {
            const { event_id: eventId } = await client.sendStateEvent(room, type, content, stateKey);
            return { roomId: room, eventId };
        }
        if (type === "m.room.redaction") {
            const { event_id: eventId } = await client.redactEvent(room, content.redacts);
            return { roomId: room, eventId };
        }
        const { event_id: eventId } = await client.sendEvent(room, type, content);
        return { roomId: room, eventId };
    }

    async sendDelayedEvent(delay, type, content, stateKey = null, roomId = null) {
        const room = roomId ?? this.roomId;
        const { delay_id: delayId } =
            stateKey !== null
                ? await client._unstable_sendDelayedStateEvent(room, { delay }, type, content, stateKey)
                : await client._unstable_sendDelayedEvent(room, { delay }, null, type, content);
        return { roomId: room, delayId };
    }

    cancelScheduledDelayedEvent = async (id) => void (await client._unstable_cancelScheduledDelayedEvent(id));
    restartScheduledDelayedEvent = async (id) => void (await client._unstable_restartScheduledDelayedEvent(id));
    sendScheduledDelayedEvent = async (id) => void (await client._unstable_sendScheduledDelayedEvent(id));

    async sendStickyEvent(duration, type, content, roomId = null) {
        const room = roomId ?? this.roomId;
        const { event_id: eventId } = await client._unstable_sendStickyEvent(room, duration, null, type, content);
        return { roomId: room, eventId };
    }

    async sendDelayedStickyEvent(delay, duration, type, content, roomId = null) {
        const room = roomId ?? this.roomId;
        const answer = await client._unstable_sendStickyDelayedEvent(room, duration, { delay }, null, type, content);
        return { roomId: room, delayId: answer.delay_id };
    }

    async sendToDevice(type, encrypted, contentMap) {
        const messages = Object.entries(contentMap).flatMap(([userId, devices]) =>
            Object.entries(devices).map(([deviceId, payload]) => ({ userId, deviceId, payload })),
        );
        if (!encrypted) {
            await client.queueToDevice({ eventType: type, batch: messages });
            return;
        }
        const byContent = new Map();
        for (const { userId, deviceId, payload } of messages) {
            const key = JSON.stringify(payload);
            if (!byContent.has(key)) byContent.set(key, { payload, devices: [] });
            byContent.get(key).devices.push({ userId, deviceId });
        }
        for (const { payload, devices } of byContent.values()) {
            const batch = await client.getCrypto().encryptToDeviceMessages(type, devices, payload);
            window.sentKeys += batch.batch.length;
            await client.queueToDevice(batch);
        }
    }

    async readRoomTimeline(roomId, type, msgtype, stateKey, limit, since) {
        const found = [];
        const events = client.getRoom(roomId)?.getLiveTimeline().getEvents() ?? [];
        for (const event of [...events].reverse()) {
            if (event.getId() === since || (limit > 0 && found.length >= limit)) break;
            if (event.getType() !== type || event.isState() !== (stateKey !== undefined)) continue;
            if (msgtype && event.getContent().msgtype !== msgtype) continue;
            if (stateKey !== undefined && event.getStateKey() !== stateKey) continue;
            found.push(raw(event));
        }
        return found;
    }

    async readRoomState(roomId, type, stateKey) {
        const state = client.getRoom(roomId)?.getLiveTimeline().getState(sdk.EventTimeline.FORWARDS);
        if (!state) return [];
        if (stateKey === undefined) return state.getStateEvents(type).map(raw);
        const event = state.getStateEvents(type, stateKey);
        return event ? [raw(event)] : [];
    }

    async readStickyEvents(roomId) {
        return [...(client.getRoom(roomId)?._unstable_getStickyEvents?.() ?? [])].map(raw);
    }

    async readEventRelations(eventId, roomId, relationType, eventType, from, to, limit, dir) {
        const page = await client.relations(roomId ?? this.roomId, eventId, relationType ?? null, eventType ?? null, {
            from,
            to,
            limit,
            dir,
        });
        return { chunk: page.events.map(raw), nextBatch: page.nextBatch, prevBatch: page.prevBatch };
    }

    askOpenID(observer) {
        client.getOpenIdToken().then(
            (token) => observer.update({ state: OpenIDRequestState.Allowed, token }),
            () => observer.update({ state: OpenIDRequestState.Blocked }),
        );
    }

    getRtcTransports = async () => ({ rtc_transports: await client._unstable_getRTCTransports() });
    getKnownRooms = () => client.getVisibleRooms().map((room) => room.roomId);
    getMediaConfig = () => client.getMediaConfig();

    processError(error) {
        return error instanceof sdk.MatrixError ? { matrix_api_error: error.asWidgetApiErrorData() } : undefined;
    }
}

/** Feeds the widget what the client hears. */
function feed(api, roomId) {
    client.on(sdk.RoomStateEvent.Events, (event) => {
        if (event.getRoomId() === roomId) api.feedStateUpdate(raw(event)).catch(console.error);
    });
    const feedEvent = (event) => {
        if (event.getRoomId() !== roomId || event.status !== null) return;
        if (event.isBeingDecrypted() || event.isDecryptionFailure()) return;
        api.feedEvent(raw(event)).catch(console.error);
    };
    client.on(sdk.ClientEvent.Event, feedEvent);
    client.on(sdk.MatrixEventEvent.Decrypted, feedEvent);
    client.on(sdk.ClientEvent.ReceivedToDeviceMessage, ({ message, encryptionInfo }) => {
        if (message.type === "io.element.call.encryption_keys" && encryptionInfo) window.receivedKeys += 1;
        api.feedToDevice(message, encryptionInfo !== null).catch(console.error);
    });
}

window.sentKeys = 0;
window.receivedKeys = 0;
window.scenario = {
    /** Signs in with cryptography and joins the room, if it is not the creator's. */
    async start({ baseUrl, account, roomId }) {
        client = sdk.createClient({ baseUrl, ...account });
        await client.initRustCrypto({ useIndexedDB: false });
        await client.startClient();
        await new Promise((resolve) => {
            client.on(sdk.ClientEvent.Sync, (state) => state === "SYNCING" && resolve());
        });
        if (client.getRoom(roomId)?.getMyMembership() !== "join") await client.joinRoom(roomId);
        window.baseUrl = baseUrl;
    },

    /** Whether the client sees all these users joined in an encrypted room. */
    async sees({ roomId, users }) {
        const room = client.getRoom(roomId);
        if (!room || !(await client.getCrypto().isEncryptionEnabledInRoom(roomId))) return false;
        await room.loadMembersIfNeeded();
        return users.every((user) => room.getMember(user)?.membership === "join");
    },

    /** Opens the widget, which joins the call without asking further. */
    open({ roomId, intent }) {
        const parameters = new URLSearchParams({
            widgetId: "call",
            parentUrl: location.origin,
            roomId,
            userId: client.getUserId(),
            deviceId: client.getDeviceId(),
            baseUrl: window.baseUrl,
            intent,
            skipLobby: "true",
            perParticipantE2EE: "true",
            confineToRoom: "true",
            sendNotificationType: "notification",
            // The standard header carries the lock that says whether media are encrypted.
            header: "standard",
            lang: "en",
            theme: "dark",
        });
        const url = `${location.origin}/element-call/index.html#?${parameters}`;
        const frame = document.createElement("iframe");
        frame.allow = "camera;microphone;autoplay;display-capture";
        document.body.append(frame);
        const definition = {
            id: "call",
            creatorUserId: client.getUserId(),
            type: "m.call",
            url,
            waitForIframeLoad: false,
        };
        widget = new ClientWidgetApi(new Widget(definition), frame, new Driver(roomId));
        widget.setViewedRoomId(roomId);
        for (const action of [
            "io.element.join",
            "im.vector.hangup",
            "io.element.device_mute",
            "io.element.close",
            "set_always_on_screen",
        ]) {
            widget.on(`action:${action}`, (event) => {
                event.preventDefault();
                console.info("widget action", action);
                widget.transport.reply(event.detail, {});
            });
        }
        feed(widget, roomId);
        frame.src = url;
    },

    /** Asks the widget to leave the call. */
    hangup: () => widget.transport.send("im.vector.hangup", {}),

    /** Media keys sent to and received from other devices over Olm. */
    keys: () => ({ sent: window.sentKeys, received: window.receivedKeys }),

    /** What a person at this screen sees: a tile per participant, with its name and moving picture. */
    seen() {
        const inside = document.querySelector("iframe")?.contentDocument;
        if (!inside) return { tiles: [] };
        const tiles = [...inside.querySelectorAll('[data-testid="videoTile"]')].map((tile) => {
            const video = tile.querySelector("video");
            return {
                name: tile.querySelector('[data-testid="name_tag"]')?.textContent ?? "",
                text: tile.textContent,
                width: video?.videoWidth ?? 0,
                time: video?.currentTime ?? 0,
                frames: video?.getVideoPlaybackQuality().totalVideoFrames ?? 0,
            };
        });
        const lock = inside.querySelector("[data-encrypted]");
        return {
            tiles,
            encrypted: lock ? lock.getAttribute("data-encrypted") === "true" : undefined,
            text: inside.body?.innerText.slice(0, 400),
        };
    },
};
