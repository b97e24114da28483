// The pages under test: bundled from `pages/` when a script starts, and served on a loopback address, which browsers
// count as secure. The widget of Element Call is served as it was installed.

import { build } from "esbuild";
import { createReadStream, existsSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { dirname, extname, join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const types = {
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
};
// Where the bundle looks for what it cannot contain, and where the widget lives.
const folders = {
    "/pkg/": join(root, "node_modules/@matrix-org/matrix-sdk-crypto-wasm/pkg"),
    "/element-call/": join(root, "node_modules/@element-hq/element-call-embedded/dist"),
};

/** Bundles `pages/<name>.mjs` for each name and serves `/<name>.html`; answers with the site's address. */
export async function serveSite(...names) {
    const bundles = mkdtempSync(join(tmpdir(), "longhouse-pages-"));
    process.on("exit", () => rmSync(bundles, { recursive: true, force: true }));
    await build({
        entryPoints: names.map((name) => join(root, "pages", `${name}.mjs`)),
        outdir: bundles,
        bundle: true,
        format: "esm",
        target: "chrome120",
        define: { global: "globalThis" },
        logLevel: "error",
    });

    const server = createServer((request, response) => {
        const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
        const page = names.find((name) => path === `/${name}.html`);
        if (page) {
            response.writeHead(200, { "Content-Type": types[".html"] });
            response.end(`<!doctype html><meta charset="utf-8"><title>${page}</title>
<style>html,body{margin:0;height:100%}iframe{border:0;width:100%;height:100%}</style>
<body><script type="module" src="/${page}.js"></script></body>`);
            return;
        }
        const prefix = Object.keys(folders).find((prefix) => path.startsWith(prefix));
        const folder = prefix ? folders[prefix] : bundles;
        const file = normalize(join(folder, path.slice(prefix ? prefix.length : 1) || "index.html"));
        if (!file.startsWith(folder + sep) || !existsSync(file) || !statSync(file).isFile()) {
            response.writeHead(404).end();
            return;
        }
        response.writeHead(200, { "Content-Type": types[extname(file)] ?? "application/octet-stream" });
        createReadStream(file).pipe(response);
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    return `http://127.0.0.1:${server.address().port}`;
}
