// One participant with livekit-client: the current version (one peer connection) or an older one (two), as the address
// says. Publishes the synthetic camera and microphone and data, and counts what comes from the others.

const dual = new URLSearchParams(location.search).has("dual");
const { Room, RoomEvent, Track } = dual ? await import("livekit-client-dual") : await import("livekit-client");

const room = new Room({ adaptiveStream: false, dynacast: true });
const others = new Map();
const of = (participant) => {
    if (!others.has(participant.identity)) others.set(participant.identity, { data: [] });
    return others.get(participant.identity);
};

room.on(RoomEvent.TrackSubscribed, (track, _publication, participant) => {
    of(participant)[track.kind] = track;
    document.body.append(track.attach());
});
room.on(RoomEvent.DataReceived, (payload, participant) => {
    if (participant) of(participant).data.push(new TextDecoder().decode(payload));
});
room.on(RoomEvent.Disconnected, (reason) => console.error("disconnected, reason", reason));

window.scenario = {
    async connect({ url, jwt }) {
        await room.connect(url, jwt);
        return room.localParticipant.identity;
    },

    async publish() {
        await room.localParticipant.setCameraEnabled(true, { resolution: { width: 640, height: 360, frameRate: 10 } });
        await room.localParticipant.setMicrophoneEnabled(true);
        return [...room.localParticipant.trackPublications.values()].map((publication) => publication.source);
    },

    present: (identities) => identities.every((identity) => room.remoteParticipants.has(identity)),

    send: (text) => room.localParticipant.publishData(new TextEncoder().encode(text), { reliable: true }),

    /** Frames decoded, audio energy and data of each other participant. */
    async received() {
        const result = {};
        for (const [identity, { video, audio, data }] of others) {
            let framesDecoded = 0;
            let audioEnergy = 0;
            for (const entry of (await video?.getRTCStatsReport())?.values() ?? []) {
                if (entry.type === "inbound-rtp") framesDecoded = entry.framesDecoded ?? 0;
            }
            for (const entry of (await audio?.getRTCStatsReport())?.values() ?? []) {
                if (entry.type === "inbound-rtp") audioEnergy = entry.totalAudioEnergy ?? 0;
            }
            result[identity] = { framesDecoded, audioEnergy, data };
        }
        return result;
    },

    connected: () => room.state === "connected",
    leave: () => room.disconnect(),
};
