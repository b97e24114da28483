// Chromium with a synthetic camera and microphone, one process tree per participant so that one can be killed.

import { existsSync } from "node:fs";
import { chromium } from "playwright-core";

const places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome", "/snap/bin/chromium"];
const executablePath = process.env.LONGHOUSE_TEST_CHROMIUM ?? places.find(existsSync);
const args = [
    "--use-fake-ui-for-media-stream",
    // Ten frames a second spare a small machine that encodes for several participants at once.
    "--use-fake-device-for-media-stream=fps=10",
    "--autoplay-policy=no-user-gesture-required",
    // Loopback candidates in clear: the tests look at candidate pairs.
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--allow-loopback-in-peer-connection",
    // A page that is not in front keeps its timers and its video.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    // Nothing is reached but the server under test.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
];

/** A browser of its own with one page on `address`. `kill()` ends its whole process tree at once, as a crash does. */
export async function openPage(name, address, { size = { width: 960, height: 600 }, beforeScripts } = {}) {
    if (!executablePath) throw new Error("no Chromium found; set LONGHOUSE_TEST_CHROMIUM");
    const server = await chromium.launchServer({ executablePath, args, headless: true, chromiumSandbox: false });
    const process_ = server.process();
    const browser = await chromium.connect(server.wsEndpoint());
    const page = await browser.newPage({ viewport: size });
    page.on("console", (message) => console.error(`[${name}] ${message.type()}: ${message.text()}`));
    page.on("pageerror", (error) => console.error(`[${name}] page error:`, error));
    page.on("crash", () => console.error(`[${name}] the page crashed`));
    if (beforeScripts) await page.addInitScript(beforeScripts);
    await page.goto(address);
    return {
        name,
        page,
        // The driver starts Chromium as the leader of a process group.
        kill: () => process.kill(-process_.pid, "SIGKILL"),
        close: async () => {
            await browser.close();
            await server.close();
        },
    };
}
