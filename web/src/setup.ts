// The form that makes the first administrator. The token stands in the link's fragment, which browsers never send; it
// leaves the address bar at once and travels only in the body of the request.

const PREFIX = "#first-admin=";

export function hasToken(): boolean {
  return location.hash.startsWith(PREFIX);
}

/** The token of the link that opened this page, taken out of the address bar and the history. */
export function takeToken(): string | undefined {
  if (!hasToken()) return undefined;
  const token = location.hash.slice(PREFIX.length);
  history.replaceState(null, "", location.pathname);
  return token || undefined;
}

export function element<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

function showError(input: HTMLInputElement, text: string): void {
  element(`${input.id}-error`).textContent = text;
  input.setAttribute("aria-invalid", String(text !== ""));
}

export function offerSetup(token: string, serverName: string): void {
  const form = element<HTMLFormElement>("setup-form");
  const [name, password] = [element<HTMLInputElement>("user-name"), element<HTMLInputElement>("password")];
  const [submit, reveal] = [element<HTMLButtonElement>("setup-submit"), element<HTMLButtonElement>("reveal")];
  element("user-name-suffix").textContent = `:${serverName}`;
  element("setup").hidden = false;
  name.focus({ preventScroll: true });

  reveal.addEventListener("click", () => {
    const shown = password.type === "password";
    password.type = shown ? "text" : "password";
    reveal.textContent = shown ? "Hide" : "Show";
    reveal.setAttribute("aria-pressed", String(shown));
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    element("setup-error").textContent = "";
    const userName = name.value.trim().replace(/^@/, "").toLowerCase();
    showError(name, nameFault(userName));
    showError(password, password.value.length < 8 ? "Use at least eight characters." : "");
    const wrong = [name, password].find((input) => input.getAttribute("aria-invalid") === "true");
    if (wrong) return wrong.focus();
    submit.disabled = true;
    submit.textContent = "Creating…";
    try {
      const answer = await create(token, userName, password.value);
      if ("user_id" in answer) return finish(answer.user_id);
      const input = { M_INVALID_USERNAME: name, M_USER_IN_USE: name, M_WEAK_PASSWORD: password }[answer.errcode];
      if (input) {
        showError(input, answer.error);
        input.focus();
      } else {
        element("setup-error").textContent = answer.error;
      }
    } catch {
      element("setup-error").textContent = "The server did not answer. Check that it runs, then try again.";
    } finally {
      submit.disabled = false;
      submit.textContent = "Create administrator";
    }
  });
}

/** Spec: appendices, user identifiers. */
function nameFault(userName: string): string {
  if (userName === "") return "Choose a user name.";
  if (!/^[a-z0-9._=/+-]+$/.test(userName)) return "Use only small letters, digits and . _ - = /";
  return "";
}

type Answer = { user_id: string } | { errcode: string; error: string };

async function create(token: string, user_name: string, password: string): Promise<Answer> {
  const response = await fetch("/_longhouse/first-admin", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ token, user_name, password }),
  });
  return (await response.json()) as Answer;
}

function finish(userId: string): void {
  element("setup-open").hidden = true;
  element("created-user").textContent = userId;
  const done = element("setup-done");
  done.hidden = false;
  element("setup").setAttribute("aria-labelledby", "created-user");
  done.focus();
}
