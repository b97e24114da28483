// One side of a 1:1 `m.call.*` call with the call code of matrix-js-sdk, media through the relay only.

import * as sdk from "matrix-js-sdk";
import { CallEvent } from "matrix-js-sdk/lib/webrtc/call";
import { CallEventHandlerEvent } from "matrix-js-sdk/lib/webrtc/callEventHandler";

let client;
let call;

function watch(newCall) {
    call = newCall;
    call.on(CallEvent.Error, (error) => console.error("call error:", error));
    call.on(CallEvent.FeedsChanged, () => {
        document.querySelectorAll("video").forEach((video) => video.remove());
        for (const feed of call.getRemoteFeeds()) {
            const video = document.createElement("video");
            Object.assign(video, { srcObject: feed.stream, autoplay: true, playsInline: true });
            document.body.append(video);
        }
    });
}

window.scenario = {
    /** Signs in and takes every incoming call. */
    async start({ baseUrl, account }) {
        // forceTURN is the library's name for iceTransportPolicy "relay".
        client = sdk.createClient({ baseUrl, ...account, forceTURN: true });
        client.on(CallEventHandlerEvent.Incoming, (incoming) => {
            watch(incoming);
            incoming.answer(true, true);
        });
        await client.startClient();
        await new Promise((resolve) => {
            client.on(sdk.ClientEvent.Sync, (state) => state === "SYNCING" && resolve());
        });
    },

    /** The STUN and TURN addresses the server offered. */
    turnUris: () => client.getTurnServers().flatMap((server) => server.urls),

    async place(roomId) {
        watch(sdk.createNewMatrixCall(client, roomId));
        await call.placeVideoCall();
    },

    hangup: () => call.hangup("user_hangup", false),

    state: () => call?.state,

    /** Frames decoded, and between which kinds of candidates the media flows. */
    async media() {
        const stats = call ? await call.getCurrentCallStats() : undefined;
        if (!stats) return {};
        const find = (id) => stats.find((entry) => entry.id === id);
        const transport = stats.find((entry) => entry.type === "transport");
        const pair = find(transport?.selectedCandidatePairId);
        const inbound = stats.filter((entry) => entry.type === "inbound-rtp");
        const video = inbound.find((entry) => entry.kind === "video");
        const audio = inbound.find((entry) => entry.kind === "audio");
        const element = document.querySelector("video");
        return {
            framesDecoded: video?.framesDecoded ?? 0,
            audioBytes: audio?.bytesReceived ?? 0,
            shown: element ? { width: element.videoWidth, time: element.currentTime } : undefined,
            local: find(pair?.localCandidateId)?.candidateType,
            remote: find(pair?.remoteCandidateId)?.candidateType,
            protocol: find(pair?.localCandidateId)?.relayProtocol,
        };
    },
};
