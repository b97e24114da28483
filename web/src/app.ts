// Fills the page from the server's status. No state is kept: a reload is always right.
import { encode } from "./qr.ts";
import { element, hasToken, offerSetup, takeToken } from "./setup.ts";
import { fetchStatus, reachesRelay, type Service, type Status } from "./status.ts";

const NAMES = { chat: "Chat", relay: "Call relay", calls: "Group calls" };
/** Who can reach what hears, in the words of the pill. */
const REACH = {
  internet: "Running",
  network: "Local network",
  machine: "This machine",
};
const PURPOSE = {
  chat: "Messages, rooms and files, by the Matrix standard.",
  relay: "Carries calls where networks would block them.",
  calls: "Audio, video and screen sharing for several people.",
};

async function main(): Promise<void> {
  const token = takeToken();
  let status: Status;
  try {
    status = await fetchStatus();
  } catch (error) {
    const failure = element("failure");
    failure.textContent = `This server did not say how it is doing. ${error instanceof Error ? error.message : ""} Reload to try again.`;
    failure.hidden = false;
    return;
  }
  document.title = `${status.server_name} · Longhouse`;
  element("server-name").textContent = status.server_name;
  element("version").textContent = `Longhouse ${status.version}`;
  if (token && status.needs_first_administrator) offerSetup(token, status.server_name);
  else if (token) usedLink();
  showSignIn(status);
  showServices(status.services);
}

function usedLink(): void {
  const failure = element("failure");
  failure.textContent = "This one-time link has done its work: this server has an administrator. Sign in below.";
  failure.hidden = false;
}

function showSignIn(status: Status): void {
  const url = status.homeserver_url;
  element("address").textContent = url;
  element("registration").textContent = {
    closed: "Accounts are made by the administrator.",
    token: "New here? Create an account with the registration token you were given.",
    open: "New here? Create an account in the app.",
  }[status.registration];
  const { protocol, hostname } = new URL(url);
  const loopback = hostname === "localhost" || hostname.startsWith("127.") || hostname === "[::1]";
  const note = element("address-note");
  if (loopback) note.textContent = "This address works on this computer only.";
  else if (protocol === "http:") note.textContent = "Apps on phones insist on https. Give the server a name and a certificate for them.";
  note.hidden = note.textContent === "";
  const copy = element<HTMLButtonElement>("copy");
  copy.addEventListener("click", () => copyAddress(copy, url));
  if (!loopback) showQr(`${url}/`);
}

async function copyAddress(button: HTMLButtonElement, text: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Without https the clipboard is closed to pages: select the text so that the keyboard can copy it.
    getSelection()?.selectAllChildren(element("address"));
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

function showQr(text: string): void {
  const matrix = encode(text);
  if (!matrix) return;
  const [svg, path] = ["svg", "path"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
  const size = matrix.length + 8;
  svg!.setAttribute("viewBox", `0 0 ${size} ${size}`);
  svg!.setAttribute("role", "img");
  svg!.setAttribute("aria-label", `QR code of ${text}`);
  svg!.setAttribute("shape-rendering", "crispEdges");
  path!.setAttribute("d", matrix.map((row, y) => row.map((dark, x) => (dark ? `M${x + 4} ${y + 4}h1v1h-1z` : "")).join("")).join(""));
  svg!.append(path!);
  element("qr").replaceChildren(svg!);
  element("qr-figure").hidden = false;
}

function showServices(services: Service[]): void {
  const list = element("services");
  list.replaceChildren(...services.map(serviceRow));
  list.setAttribute("aria-busy", "false");
}

function serviceRow(service: Service): HTMLLIElement {
  const row = document.createElement("li");
  const [name, pill] = [document.createElement("h3"), document.createElement("span")];
  name.textContent = NAMES[service.name];
  const show = (kind: string, words: string) => {
    pill.className = `pill ${kind}`;
    pill.textContent = words;
  };
  row.append(name, pill);
  const say = (text: string, kind = "") => {
    const line = document.createElement("p");
    line.className = kind;
    line.append(...withCode(text));
    row.append(line);
  };
  say(PURPOSE[service.name]);
  switch (service.state) {
    case "off":
      show("off", "Switched off");
      break;
    case "unreachable":
      show("bad", "Not reachable");
      break;
    case "impaired":
      show("warn", "In part");
      break;
    case "running":
      if (!service.reach) show("good", "Running");
      else show(service.reach === "internet" ? "good" : "warn", REACH[service.reach]);
  }
  if (service.state !== "off" && service.addresses?.length) say(`At ${service.addresses.map((address) => `\`${address}\``).join(", ")}.`);
  if (service.state === "running" && service.reach) say("Its ports hear: the server has just tried them.", "fine");
  if (service.detail) say(service.detail, "why");
  if (service.cure) say(service.cure, "cure");
  // That a browser on this machine reaches it is no news.
  if (service.state === "running" && service.reach !== "machine" && service.stun) void tryRelay(service.stun, show, say);
  return row;
}

/** Text with what stands between backticks as code. */
function withCode(text: string): (string | HTMLElement)[] {
  return text.split("`").map((part, index) => {
    if (index % 2 === 0) return part;
    const code = document.createElement("code");
    code.textContent = part;
    return code;
  });
}

async function tryRelay(stun: string, show: (kind: string, words: string) => void, say: (text: string, kind?: string) => void): Promise<void> {
  const reached = await reachesRelay(stun);
  const address = stun.replace("stun:", "");
  if (reached === true) {
    show("good", "Reachable");
    say("This browser reaches it.", "fine");
  } else if (reached === false) {
    show("bad", "Not reached");
    say(`This browser gets no answer from \`${address}\` over UDP: a firewall between here and there is closing that port.`, "why");
    say("Open the port: `longhouse ports` prints the lines for three firewalls.", "cure");
  }
}

// A link opened where this page already is changes the fragment alone.
addEventListener("hashchange", () => {
  if (hasToken()) location.reload();
});
void main();
