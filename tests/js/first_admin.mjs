// A person opens the one-time link of a fresh server in a browser and becomes its administrator.

import { openPage } from "./lib/browser.mjs";
import { parameters, report, run } from "./lib/scenario.mjs";

const { link, name, password } = parameters;

await run(async () => {
    const { page, close } = await openPage("administrator", link, { size: { width: 1024, height: 900 } });
    await page.getByLabel("User name").fill(name);
    await page.getByLabel("Password", { exact: true }).fill(password);
    await page.getByRole("button", { name: "Create administrator" }).click();
    await page.getByText("looks after this server").waitFor();
    report("created", { heading: await page.locator("#setup-done h2").innerText() });
    await close();
});
