"""The LiveKit Python SDK (libwebrtc and a signalling stack of its own): publishes video, audio and data, and counts what
it receives from the others in the room."""

import asyncio
import math

import numpy
from livekit import rtc

from scenario import PARAMETERS, command, report, run, until

WIDTH, HEIGHT, FRAMES_PER_SECOND = 320, 240, 15
SAMPLE_RATE = 48_000


class Received:
    """What has come from one other participant."""

    def __init__(self):
        self.video_frames = 0
        self.loud_audio_frames = 0
        self.data = []


async def publish_video(source):
    """A moving gradient, so that no two frames are alike."""
    step = 0
    row = numpy.arange(WIDTH, dtype=numpy.uint16)
    while True:
        frame = numpy.empty((HEIGHT, WIDTH, 4), dtype=numpy.uint8)
        frame[..., 0] = (row + step) % 256
        frame[..., 1] = (row * 2 + step) % 256
        frame[..., 2] = 128
        frame[..., 3] = 255
        source.capture_frame(rtc.VideoFrame(WIDTH, HEIGHT, rtc.VideoBufferType.RGBA, frame.tobytes()))
        step += 3
        await asyncio.sleep(1 / FRAMES_PER_SECOND)


async def publish_audio(source):
    """A tone of 440 Hz, in frames of 10 ms."""
    samples = SAMPLE_RATE // 100
    at = 0
    while True:
        phase = (numpy.arange(at, at + samples) * (2 * math.pi * 440 / SAMPLE_RATE))
        wave = (numpy.sin(phase) * 12_000).astype(numpy.int16)
        await source.capture_frame(rtc.AudioFrame(wave.tobytes(), SAMPLE_RATE, 1, samples))
        at += samples


async def main():
    room = rtc.Room()
    received = {}
    tasks = []

    def of(participant):
        return received.setdefault(participant.identity, Received())

    async def count_video(track, participant):
        async for _ in rtc.VideoStream(track):
            of(participant).video_frames += 1

    async def count_audio(track, participant):
        async for event in rtc.AudioStream(track):
            wave = numpy.frombuffer(event.frame.data, dtype=numpy.int16)
            if numpy.abs(wave.astype(numpy.int32)).max(initial=0) > 500:
                of(participant).loud_audio_frames += 1

    @room.on("track_subscribed")
    def _subscribed(track, publication, participant):
        count = count_video if track.kind == rtc.TrackKind.KIND_VIDEO else count_audio
        tasks.append(asyncio.create_task(count(track, participant)))

    @room.on("data_received")
    def _data(packet):
        if packet.participant is not None:
            of(packet.participant).data.append(packet.data.decode())

    single = PARAMETERS.get("singlePeerConnection")
    options = rtc.RoomOptions(auto_subscribe=True, single_peer_connection=single)
    await room.connect(PARAMETERS["url"], PARAMETERS["jwt"], options=options)
    report("connected", identity=room.local_participant.identity)

    video_source = rtc.VideoSource(WIDTH, HEIGHT)
    video = rtc.LocalVideoTrack.create_video_track("camera", video_source)
    audio_source = rtc.AudioSource(SAMPLE_RATE, 1)
    audio = rtc.LocalAudioTrack.create_audio_track("microphone", audio_source)
    tasks.append(asyncio.create_task(publish_video(video_source)))
    tasks.append(asyncio.create_task(publish_audio(audio_source)))
    await room.local_participant.publish_track(
        video, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_CAMERA, simulcast=False)
    )
    await room.local_participant.publish_track(
        audio, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
    )
    report("published")

    await command("exchange")
    peers = PARAMETERS["peers"]
    await until(
        f"the others {peers} in the room",
        lambda: all(peer in room.remote_participants for peer in peers),
    )
    await room.local_participant.publish_data(f"hello from {room.local_participant.identity}", reliable=True)

    def complete():
        return all(
            peer in received
            and received[peer].video_frames >= 20
            and received[peer].loud_audio_frames >= 20
            and len(received[peer].data) >= 1
            for peer in peers
        )

    try:
        await until("video, audio and data of everyone", complete)
    finally:
        for identity, got in received.items():
            report(
                "received",
                peer=identity,
                videoFrames=got.video_frames,
                loudAudioFrames=got.loud_audio_frames,
                data=got.data,
            )
    await command("leave")
    for task in tasks:
        task.cancel()
    await room.disconnect()


run(main)
