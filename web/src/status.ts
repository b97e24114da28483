// What the server says about itself, and what this browser can find out by trying. Owns the shape of the status answer.

export interface Service {
  name: "chat" | "relay" | "calls";
  /**
   * running: every port of it hears, as the server found out by trying. impaired: some do not. unreachable: none does.
   * off: switched off by the configuration. What cannot run stops the server's start.
   */
  state: "running" | "impaired" | "unreachable" | "off";
  /** Who can reach it, judged by its addresses. */
  reach?: "internet" | "network" | "machine";
  addresses?: string[];
  /** Why, when there is something to explain. Words between backticks are to be typed. */
  detail?: string;
  /** What to do about it. */
  cure?: string;
  /** A STUN address this browser may ask. */
  stun?: string;
}

export interface Status {
  server_name: string;
  version: string;
  homeserver_url: string;
  registration: "closed" | "token" | "open";
  needs_first_administrator: boolean;
  services: Service[];
}

export async function fetchStatus(): Promise<Status> {
  const response = await fetch("/_longhouse/status", { headers: { accept: "application/json" }, cache: "no-store" });
  if (!response.ok) throw new Error(`The server answered ${response.status}.`);
  return (await response.json()) as Status;
}

/** Asks the relay for this browser's own address. `undefined` when the browser cannot tell. */
export async function reachesRelay(stun: string): Promise<boolean | undefined> {
  if (typeof RTCPeerConnection === "undefined") return undefined;
  let connection: RTCPeerConnection;
  try {
    connection = new RTCPeerConnection({ iceServers: [{ urls: stun }] });
  } catch {
    return undefined;
  }
  try {
    return await new Promise<boolean | undefined>((resolve) => {
      let failed = false;
      const reportsErrors = "onicecandidateerror" in connection;
      connection.addEventListener("icecandidate", ({ candidate }) => {
        if (candidate?.type === "srflx") resolve(true);
        // Browsers leave out a reflexive candidate that equals a local one: silence without an error is an answer.
        else if (candidate === null) resolve(failed ? false : reportsErrors ? true : undefined);
      });
      connection.addEventListener("icecandidateerror", () => (failed = true));
      setTimeout(() => resolve(failed ? false : undefined), 12_000);
      connection.createDataChannel("");
      connection.createOffer().then((offer) => connection.setLocalDescription(offer)).catch(() => resolve(undefined));
    });
  } finally {
    connection.close();
  }
}
