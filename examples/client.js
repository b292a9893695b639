// Starlight from a browser: what starlight.connect() does in Python, as one ES module without a build step.
//   import { connect } from "./client.js";
//   const client = await connect("ws://127.0.0.1:8765/ws", { user: "ada", onMessage: (m) => console.log(m) });
//   await client.join("news", (publication) => console.log(publication.from, publication.data));
//   await client.publish("news", "hi");
// Law: one socket at a time; replies are matched by id; what was under way when a socket closed is rejected, its fate
// unknown, and never sent twice; what is asked while there is no connection waits for one, for timeoutMs at most.
const MAX_REQUESTS = 1024; // under way at once: a program that asks faster than it is answered should notice
const STABLE_MS = 10_000; // only a connection that lasted longer resets the backoff: evict-reconnect loops slow down
const mayReconnect = (code) => !([1000, 1002, 1003, 1007, 1008, 1009].includes(code) || code >= 4500);
const failure = (name, message, code) => Object.assign(new Error(message), { name, code });
const deferred = (one = {}) => { // a promise with its resolve and reject; that nobody waits for it is no fault
  (one.promise = new Promise((resolve, reject) => Object.assign(one, { resolve, reject }))).catch(() => {});
  return one;
};
/** options: user, or token (a string, or a function, possibly async, that gives one: at login, when it expires, and to
 *  come back where the session isn't accepted); lines; reconnect; onMessage (all pushes); onState; times. */
export const connect = (url, options) => new Client(url, options).open();

export class Client {
  #waiting = new Map(); #channels = new Map(); // id -> request, channel -> callback: joined again after a reconnect
  #url; #options; #socket; #session; #wasReady; #isClosed; #ready = deferred(); #id = 1; #attempt = 0; #waitMs = 0;
  constructor(url, options = {}) {
    this.#url = url;
    this.#options = { lines: false, reconnect: true, timeoutMs: 10_000, pingMs: 25_000, backoffMs: 250,
      backoffMaxMs: 30_000, onMessage: () => {}, onState: () => {}, ...options };
  }
  publish(channel, data) { return this.#ask({ type: "publish", channel, data }); }
  direct(to, data) { return this.#ask({ type: "direct", to, data }); }
  broadcast(data) { return this.#ask({ type: "broadcast", data }); }
  refresh(token) { return this.#ask({ type: "refresh", token }, (reply) => (this.#session = reply.session)); }
  presence(channel) { return this.#ask({ type: "presence", channel }); }
  ping() { return this.#ask({ type: "ping" }); }
  request(type, data = null) { return this.#ask({ type, data }).then((reply) => reply.data); }
  join(channel, callback) { return this.#ask({ type: "join", channel }, () => this.#channels.set(channel, callback)); }
  leave(channel) { return this.#ask({ type: "leave", channel }, () => this.#channels.delete(channel)); }
  close() { this.#isClosed = true; this.#socket.close(1000); }
  /** Connects; resolves with the client after the welcome, once it has joined again what was joined before. */
  open() {
    const { lines, reconnect, backoffMs, backoffMaxMs, onState } = this.#options;
    const socket = (this.#socket = new WebSocket(this.#url, [lines ? "starlight.v1.lines" : "starlight.v1"]));
    const split = (text) => (lines ? text.split("\n").filter(Boolean) : [text]);
    const giveUp = () => socket.close(4000); // the server is silent: a code of ours, from the range that reconnects
    let openedAt = Infinity, beat, timer = setTimeout(giveUp, this.#options.timeoutMs);
    socket.onopen = () => this.#login().then(() => {
      clearTimeout(timer);
      [openedAt, this.#wasReady] = [Date.now(), true];
      beat = setInterval(() => this.#ask({ type: "ping" }, null, true).catch(giveUp), this.#options.pingMs);
      this.#ready.resolve(this);
      onState("connected");
    }).catch(giveUp);
    socket.onmessage = ({ data }) => split(data).forEach((message) => this.#receive(JSON.parse(message)));
    socket.onclose = ({ code, reason }) => {
      [timer, beat].forEach(clearTimeout); // clears an interval, too
      const isRefused = this.#session && openedAt === Infinity && [4500, 4501].includes(code); // the token is next
      if (isRefused || code === 4014) this.#session = null;
      const error = failure("ConnectionLost", `closed with ${code} ${reason}`.trim(), code);
      for (const [id, request] of this.#waiting) if (request.isSent) this.#settle(id).reject(error);
      if (openedAt < Infinity) this.#ready = deferred();
      if (Date.now() - openedAt > STABLE_MS) this.#attempt = 0;
      const end = () => { this.#isClosed = true; this.#ready.reject(error); onState("closed", error); };
      if (this.#isClosed || !this.#wasReady || !reconnect || !(isRefused || mayReconnect(code))) return end();
      const delayMs = this.#waitMs + Math.random() * Math.min(backoffMaxMs, backoffMs * 2 ** this.#attempt++);
      this.#waitMs = 0;
      onState("reconnecting", { code, delayMs });
      setTimeout(() => (this.#isClosed ? end() : this.open()), delayMs);
    };
    return this.#ready.promise;
  }
  async #login() {
    const { user, token, onMessage } = this.#options; // onMessage is also told when joining again is refused
    const fresh = this.#session ?? (typeof token === "function" ? await token() : token);
    this.welcome = await this.#ask({ type: "login", ...(fresh ? { token: fresh } : { user }) }, null, true);
    this.#session = this.welcome.session;
    for (const channel of this.#channels.keys()) this.#ask({ type: "join", channel }, null, true).catch(onMessage);
  }
  async #ask(message, onOk, now = false) {
    if (this.#waiting.size >= MAX_REQUESTS) throw failure("TooManyRequests", `${MAX_REQUESTS} are under way`);
    const id = this.#id++, late = () => this.#settle(id)?.reject(failure("Timeout", `no reply to ${message.type}`));
    const request = deferred({ onOk, isSent: false, timer: setTimeout(late, this.#options.timeoutMs) });
    this.#waiting.set(id, request);
    if (!now) await this.#ready.promise.catch((error) => this.#settle(id)?.reject(error));
    request.isSent = this.#waiting.has(id); // not if it failed, or waited too long for a connection
    if (request.isSent) this.#socket.send(JSON.stringify({ ...message, id }));
    return request.promise;
  }
  #settle(id, one = this.#waiting.get(id)) { clearTimeout(one?.timer); this.#waiting.delete(id); return one; }
  #receive(message) {
    if (message.type === "publication") return this.#channels.get(message.channel)?.(message);
    if (message.type === "bye") this.#waitMs = message.retry_ms ?? 0;
    if (message.type === "expiring" && typeof this.#options.token === "function")
      return (async () => this.refresh(await this.#options.token()))().catch(this.#options.onMessage);
    const request = this.#settle(message.id); // the welcome, too, is a reply
    if (!request) return this.#options.onMessage(message);
    if (message.type === "error") return request.reject(failure(message.name, message.message, message.code));
    request.onOk?.(message);
    request.resolve(message);
  }
}
