// A person opens the one-time link of a fresh server on a phone, in the dark, and becomes its administrator by keyboard
// alone.

import { openPage } from "./lib/browser.mjs";
import { parameters, report, run } from "./lib/scenario.mjs";

const { link, name, password } = parameters;

await run(async () => {
    const { page, close } = await openPage("administrator", link, { size: { width: 360, height: 740 } });
    await page.emulateMedia({ colorScheme: "dark" });
    await page.locator("#services li").nth(2).waitFor();
    const looks = await page.evaluate(() => {
        const beyond = (element) => element.getBoundingClientRect().right > innerWidth + 0.5;
        return {
            // What is cut off does not make the page wider, so each element is looked at.
            cut: [...document.querySelectorAll("main *, footer *")].filter(beyond).map((element) => element.outerHTML.slice(0, 80)),
            background: getComputedStyle(document.body).backgroundColor,
            services: [...document.querySelectorAll("#services li")].map((row) => row.innerText),
        };
    });
    report("shown", looks);
    // The form has the focus when the link opens it.
    await page.keyboard.type(name);
    await page.keyboard.press("Tab");
    await page.keyboard.type(password);
    await page.keyboard.press("Tab");
    report("focus", { on: await page.evaluate(() => document.activeElement.innerText) });
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.getByText("looks after this server").waitFor();
    report("created", { heading: await page.locator("#setup-done h2").innerText() });
    await close();
});
