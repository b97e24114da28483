// Element Call, unmodified, as a widget in Chromium: two, then three participants, each in a browser of its own, each
// over its own client of the server with media keys per participant.

import { register, request } from "./lib/accounts.mjs";
import { openPage } from "./lib/browser.mjs";
import { command, parameters, report, run, until } from "./lib/scenario.mjs";
import { serveSite } from "./lib/site.mjs";

const { baseUrl, suffix = "", screenshots } = parameters;
const names = ["ada", "ben", "cleo"].map((name) => name + suffix);

/** Runs in every frame before its scripts: counts the encoded transforms its media get, however they are made. */
function countTransforms() {
    window.encodedTransforms = 0;
    for (const prototype of [RTCRtpSender.prototype, RTCRtpReceiver.prototype]) {
        const create = prototype.createEncodedStreams;
        if (create) {
            prototype.createEncodedStreams = function () {
                window.encodedTransforms += 1;
                return create.call(this);
            };
        }
        const transform = Object.getOwnPropertyDescriptor(prototype, "transform");
        if (transform?.set) {
            Object.defineProperty(prototype, "transform", {
                ...transform,
                set(value) {
                    if (value) window.encodedTransforms += 1;
                    transform.set.call(this, value);
                },
            });
        }
    }
}

await run(async () => {
    const site = await serveSite("element-call-host");
    const accounts = [];
    for (const name of names) accounts.push(await register(baseUrl, name));
    const { room_id: roomId } = await request(baseUrl, "POST", "/_matrix/client/v3/createRoom", {
        token: accounts[0].accessToken,
        body: {
            preset: "private_chat",
            name: "The hall",
            invite: accounts.slice(1).map((account) => account.userId),
            initial_state: [
                { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
            ],
            // What Element Web asks for when it creates a room, so that ordinary members may take part in calls.
            power_level_content_override: { events: { "org.matrix.msc3401.call.member": 0 } },
        },
    });
    report("room", { roomId, users: accounts.map((account) => account.userId) });

    const participants = [];

    async function enter(index) {
        const browser = await openPage(names[index], `${site}/element-call-host.html`, { beforeScripts: countTransforms });
        const { page } = browser;
        participants.push({ ...browser, account: accounts[index] });
        await page.waitForFunction(() => window.scenario);
        await page.evaluate((options) => window.scenario.start(options), {
            baseUrl,
            account: accounts[index],
            roomId,
        });
    }

    /** How many senders and receivers pass their frames through the widget's cryptography. */
    async function encodedTransforms(page) {
        const counts = await Promise.all(page.frames().map((frame) => frame.evaluate(() => window.encodedTransforms ?? 0)));
        return counts.reduce((sum, count) => sum + count, 0);
    }

    async function everyoneSees(what, expected, limit) {
        for (const { name, page } of expected) {
            const others = expected.filter((other) => other.name !== name);
            let last;
            try {
                await until(
                    `${name} sees ${others.map((other) => other.name)} ${what}`,
                    async () => {
                        last = await page.evaluate(() => window.scenario.seen());
                        if (last.tiles.length !== expected.length) return false;
                        return others.every((other) =>
                            last.tiles.some((tile) => tile.name.startsWith(other.name) && tile.frames >= 20 && tile.width > 0),
                        );
                    },
                    limit,
                    250,
                );
            } catch (error) {
                if (screenshots) await page.screenshot({ path: `${screenshots}/${name}.png` }).catch(() => {});
                const keys = JSON.stringify(await page.evaluate(() => window.scenario.keys()));
                throw new Error(`${error.message}; ${name}'s media keys: ${keys}, screen: ${JSON.stringify(last)}`);
            }
            // Pictures move: the same tiles have played on.
            await until(`${name}'s tiles play on`, async () => {
                const now = await page.evaluate(() => window.scenario.seen());
                return others.every((other) => {
                    const before = last.tiles.find((tile) => tile.name.startsWith(other.name));
                    const after = now.tiles.find((tile) => tile.name.startsWith(other.name));
                    return after?.frames > before.frames && after.time > before.time;
                });
            });
            const keys = await page.evaluate(() => window.scenario.keys());
            const transforms = await encodedTransforms(page);
            report("sees", {
                viewer: name,
                others: others.map((other) => other.name),
                encrypted: last.encrypted,
                keys,
                transforms,
            });
        }
    }

    await enter(0);
    await enter(1);
    const users = accounts.slice(0, 2).map((account) => account.userId);
    for (const { page, name } of participants) {
        await until(`${name} sees both members`, () =>
            page.evaluate((options) => window.scenario.sees(options), { roomId, users }),
        );
    }
    for (const [index, { page }] of participants.entries()) {
        const intent = index === 0 ? "start_call" : "join_existing";
        await page.evaluate((options) => window.scenario.open(options), { roomId, intent });
    }
    await everyoneSees("in a call of two", participants, 90_000);
    report("two");

    await enter(2);
    for (const { page, name } of participants) {
        await until(`${name} sees all three members`, () =>
            page.evaluate((options) => window.scenario.sees(options), {
                roomId,
                users: accounts.map((account) => account.userId),
            }),
        );
    }
    await participants[2].page.evaluate((options) => window.scenario.open(options), { roomId, intent: "join_existing" });
    await everyoneSees("in a call of three", participants, 120_000);
    report("three");

    await command("kill-the-third");
    const [third] = participants.splice(2, 1);
    third.kill();
    const since = performance.now();
    report("killed", { user: third.account.userId });
    for (const { page, name } of participants) {
        await until(
            `${name} no longer sees ${third.name}`,
            async () => {
                const { tiles } = await page.evaluate(() => window.scenario.seen());
                return tiles.length === 2 && !tiles.some((tile) => tile.name.startsWith(third.name));
            },
            30_000,
        );
    }
    report("gone", { milliseconds: Math.round(performance.now() - since) });

    // The first leaves in order; the second's browser dies, and the server goes down before it can have noticed.
    await command("hang-up-the-first");
    await participants[0].page.evaluate(() => window.scenario.hangup());
    report("hung-up", { user: participants[0].account.userId });
    await command("kill-the-second");
    participants[1].kill();
    report("killed", { user: participants[1].account.userId });
    participants[0].kill();
});
