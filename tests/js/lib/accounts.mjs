// Accounts by plain HTTP, for scripts that need a user before their library starts.

/** One JSON request; an answer other than 2xx throws with the answer in the message. */
export async function request(baseUrl, method, path, { body, token } = {}) {
    const response = await fetch(baseUrl + path, {
        method,
        headers: {
            ...(body === undefined ? {} : { "Content-Type": "application/json" }),
            ...(token ? { Authorization: `Bearer ${token}` } : {}),
        },
        body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path} answered ${response.status}: ${text}`);
    return text ? JSON.parse(text) : {};
}

/** Registers a user where registration is open, and returns its credentials. */
export async function register(baseUrl, username, password = "correct horse battery staple") {
    const answer = await request(baseUrl, "POST", "/_matrix/client/v3/register", {
        body: { username, password, initial_device_display_name: "system test", auth: { type: "m.login.dummy" } },
    });
    return { userId: answer.user_id, deviceId: answer.device_id, accessToken: answer.access_token, password };
}
