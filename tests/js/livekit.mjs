// livekit-client in Chromium: the participants the test names, each in a page of its own, publish and subscribe.

import { openPage } from "./lib/browser.mjs";
import { command, parameters, report, run, until } from "./lib/scenario.mjs";
import { serveSite } from "./lib/site.mjs";

/** `participants`: `{ url, jwt, dual }` of those in Chromium; `everyone`: the identities of all, others' too. */
const { participants, everyone } = parameters;

await run(async () => {
    const site = await serveSite("livekit");
    const pages = [];
    for (const [index, { url, jwt, dual }] of participants.entries()) {
        const name = `participant ${index + 1}${dual ? " (two peer connections)" : ""}`;
        const browser = await openPage(name, `${site}/livekit.html${dual ? "?dual" : ""}`, {
            size: { width: 640, height: 480 },
        });
        await browser.page.waitForFunction(() => window.scenario);
        const identity = await browser.page.evaluate((options) => window.scenario.connect(options), { url, jwt });
        report("connected", { identity });
        const published = await browser.page.evaluate(() => window.scenario.publish());
        report("published", { identity, sources: published.sort() });
        pages.push({ ...browser, identity });
    }

    await command("exchange");
    for (const { page, identity } of pages) {
        const others = everyone.filter((other) => other !== identity);
        await until(`${identity} sees ${others} in the room`, () =>
            page.evaluate((others) => window.scenario.present(others), others),
        );
        await page.evaluate((text) => window.scenario.send(text), `hello from ${identity}`);
    }
    for (const { page, identity } of pages) {
        const others = everyone.filter((other) => other !== identity);
        let last;
        try {
            await until("video, audio and data of everyone", async () => {
                last = await page.evaluate(() => window.scenario.received());
                return others.every((other) => {
                    const received = last[other];
                    return received?.framesDecoded >= 20 && received.audioEnergy > 0 && received.data.length >= 1;
                });
            });
        } catch (error) {
            throw new Error(`${identity}: ${error.message}; received ${JSON.stringify(last)}`);
        }
        for (const other of others) report("received", { viewer: identity, peer: other, ...last[other] });
    }
    await command("leave");
    for (const { page, close } of pages) {
        await page.evaluate(() => window.scenario.leave());
        await close();
    }
});
