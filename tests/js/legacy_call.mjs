// Two Chromium pages in an `m.call.*` video call whose media may travel through the relay only.

import { register, request } from "./lib/accounts.mjs";
import { openPage } from "./lib/browser.mjs";
import { command, parameters, report, run, until } from "./lib/scenario.mjs";
import { serveSite } from "./lib/site.mjs";

const { baseUrl, suffix = "" } = parameters;

await run(async () => {
    const site = await serveSite("legacy-call");
    const accounts = [await register(baseUrl, "caller" + suffix), await register(baseUrl, "callee" + suffix)];
    const { room_id: roomId } = await request(baseUrl, "POST", "/_matrix/client/v3/createRoom", {
        token: accounts[0].accessToken,
        body: { preset: "trusted_private_chat", is_direct: true, invite: [accounts[1].userId] },
    });
    await request(baseUrl, "POST", `/_matrix/client/v3/join/${encodeURIComponent(roomId)}`, {
        token: accounts[1].accessToken,
        body: {},
    });

    const browsers = await Promise.all(["caller", "callee"].map((name) => openPage(name, `${site}/legacy-call.html`)));
    const [caller, callee] = browsers.map(({ page }) => page);
    for (const [index, page] of [caller, callee].entries()) {
        await page.waitForFunction(() => window.scenario);
        await page.evaluate((options) => window.scenario.start(options), { baseUrl, account: accounts[index] });
        const uris = await until("TURN servers", async () => {
            const found = await page.evaluate(() => window.scenario.turnUris());
            return found.length > 0 && found;
        });
        report("turn-servers", { uris });
    }

    await caller.evaluate((roomId) => window.scenario.place(roomId), roomId);
    await until("both sides connected", async () => {
        const states = await Promise.all([caller, callee].map((page) => page.evaluate(() => window.scenario.state())));
        return states.every((state) => state === "connected");
    });
    for (const [index, page] of [caller, callee].entries()) {
        const media = await until("20 decoded frames and audio", async () => {
            const media = await page.evaluate(() => window.scenario.media());
            return media.framesDecoded >= 20 && media.audioBytes > 0 && media.shown?.width > 0 && media;
        });
        report("media", { side: ["caller", "callee"][index], ...media });
    }

    report("in-call");
    await command("hang-up");
    await caller.evaluate(() => window.scenario.hangup());
    await until("the callee hears the hang-up", async () =>
        (await callee.evaluate(() => window.scenario.state())) === "ended",
    );
    report("ended");
    await Promise.all(browsers.map((browser) => browser.close()));
});
