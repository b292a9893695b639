// Starlight from a browser: what starlight.connect() does in Python, as one ES module without a build step.
//   import { connect } from "./client.js";
//   const client = await connect("ws://127.0.0.1:8765/ws", { user: "ada", onMessage: (m) => console.log(m) });
//   await client.join("news", (publication) => console.log(publication.from, publication.data));
//   await client.publish("news", "hi");
// Law: one socket at a time; replies are matched by id; what was under way when a socket closed is rejected, its fate
// unknown, and never sent twice; what is asked while there is no connection waits for one, for timeoutMs at most.
// Nothing that a server sends throws: what can't be read is dropped and counted. close() is final in any state.

const MAX_REQUESTS = 1024; // under way at once: a program that asks faster than it is answered should notice
const STABLE_MS = 10_000; // only a connection that lasted longer resets the backoff: evict-reconnect loops slow down
const RETRY_LIMIT_MS = 60_000; // the longest wait that a server may ask for
const SPREAD = 2; // doublings ahead where everybody was sent away
const JOINS_LIMIT = 256; // channels in one message
const MAX_WISHES = 16_384; // joins under way at once
const JOIN_BYTES = 32 * 1024; // of one message, if the server takes so many
const PATIENCE_MS = 60_000; // a channel that is full may be so by our own connection of before
const RENEWALS_LIMIT = 3; // renewals in a row that were in vain, before the next login
const WAKE_ANSWER_MS = 5_000; // a page that wakes wants to know soon whether its line is alive
const DEFAULTS = {
  lines: false, reconnect: true, timeoutMs: 10_000, tokenTimeoutMs: 60_000, pingMs: 25_000, backoffMs: 250,
  backoffMaxMs: 30_000, onMessage: () => {}, onState: () => {},
};

/** What a client does after a close code: "never" comes back, "reconnect" soon, or with "backoff". */
export const policy = (code) => {
  if ([1000, 1002, 1003, 1007, 1008, 1009].includes(code) || (code >= 4500 && code <= 4999)) return "never";
  const isSoon = code === 1005 || (code >= 4000 && code <= 4499 && ![4015, 4016].includes(code));
  return isSoon ? "reconnect" : "backoff";
};

/** Connects and logs in. Options:
 *  user, or token: a string, or a function, possibly async, that gives one. It is asked before the socket is opened, at
 *    the first login, when the login ends soon, and to come back where the session isn't accepted. It may take
 *    tokenTimeoutMs; when it fails it is asked again with backoff, but for the first login;
 *  lines: speak starlight.v1.lines; reconnect: whether to come back;
 *  onMessage: gets all pushes but publications, errors without an id, and {type: "error", channel, code, name, message}
 *    once for a channel that may not be joined again after a reconnect;
 *  onState: gets "connected", "reconnecting" with {code, delayMs}, "closed" with an error; and times, see DEFAULTS. */
export const connect = (url, options) => new Client(url, options).open();

const failure = (name, message, code) => Object.assign(new Error(message), { name, code });
const closed = ({ code, reason }) => failure("ConnectionLost", `closed with ${code} ${reason}`.trim(), code);
const clamp = (value, low, high, otherwise) =>
  typeof value === "number" && !Number.isNaN(value) ? Math.min(Math.max(value, low), high) : otherwise;
const sizeOf = (text) => new TextEncoder().encode(text).length;
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** A promise with its resolve and reject; that nobody waits for it is no fault. */
const deferred = (one = {}) => {
  one.promise = new Promise((resolve, reject) => Object.assign(one, { resolve, reject }));
  one.promise.catch(() => {});
  return one;
};

/** The promise, or after so many milliseconds a failure. */
const within = (ms, promise, what) => {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(failure("Timeout", what)), ms)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};

/** Waits, but not longer than a line lasts. */
const pause = (ms, line) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    line.ended.promise.then(() => (clearTimeout(timer), resolve()));
  });

/** Calls a function of the application; what it throws is its own affair. */
const tell = (callback, ...words) => {
  try {
    callback?.(...words);
  } catch (error) {
    console.error(error);
  }
};

/** The id in a message that can't be parsed, if it stands where servers write it. */
const idOfUnreadable = (text) => {
  const found = /^\s*\{\s*"type"\s*:\s*"\w+"\s*,\s*"id"\s*:\s*(\d{1,16})\s*[,}]/.exec(text);
  return Number((found ?? /,\s*"id"\s*:\s*(\d{1,16})\s*\}\s*$/.exec(text.slice(-64)))?.[1] ?? NaN);
};

/** One WebSocket: it opens once and ends once, and what it still gets after its end counts no more. */
class Line {
  isOver = false;
  welcome = null;
  heardAt = Date.now();
  opened = deferred();
  ended = deferred();
  #socket;
  #onEnd;

  constructor(url, protocol, onText, onEnd) {
    this.#onEnd = onEnd;
    this.#socket = new WebSocket(url, [protocol]);
    this.#socket.onopen = () => this.opened.resolve();
    this.#socket.onclose = ({ code, reason }) => this.#end({ code, reason });
    this.#socket.onmessage = ({ data }) => {
      this.heardAt = Date.now();
      if (!this.isOver) onText(data);
    };
  }

  send(text) {
    if (!this.isOver) this.#socket.send(text);
  }

  /** Ends it here and now. A dead line would let the close handshake take minutes, so nobody waits for it. */
  drop(code = 1006, reason = "connection lost") {
    this.#end({ code, reason });
    this.#socket.close(code === 1000 ? 1000 : 4000);
  }

  #end(end) {
    if (this.isOver) return;
    this.isOver = true;
    this.opened.reject(closed(end));
    this.#onEnd(this, end);
    this.ended.resolve(end);
  }
}

/** Notices that a line is dead: after askMs of silence it asks for a sign of life, and drops it answerMs later. */
class Watch {
  #line; #askMs; #answerMs; #askedAt = null; #isLastChance = false; #dueAt; #timer;

  constructor(line, pingMs) {
    const { ping, pong } = line.welcome;
    this.#line = line;
    this.#askMs = Math.min(pingMs, clamp(ping, 0.05, 3600, 25) * 1000);
    this.#answerMs = clamp(pong, 0.05, 3600, 10) * 1000;
    this.#lookIn(this.#askMs);
  }

  stop() {
    clearTimeout(this.#timer);
  }

  /** The page was frozen or hidden, or the network has changed: is the line still alive? */
  checkNow() {
    const isAsked = this.#askedAt !== null && this.#line.heardAt < this.#askedAt;
    if (!isAsked) this.#ask(Math.min(this.#answerMs, WAKE_ANSWER_MS));
  }

  #lookIn(ms) {
    clearTimeout(this.#timer);
    this.#dueAt = Date.now() + ms;
    this.#timer = setTimeout(() => this.#look(), ms);
  }

  #ask(answerMs) {
    this.#askedAt = Date.now();
    this.#isLastChance = false;
    this.#line.send('{"type":"ping"}');
    this.#lookIn(answerMs);
  }

  #look() {
    const now = Date.now();
    const isLate = now - this.#dueAt > 1000; // frozen, asleep or throttled: what came meanwhile may not be handled yet
    const silentMs = now - this.#line.heardAt;
    if (this.#askedAt !== null && this.#line.heardAt >= this.#askedAt) this.#askedAt = null;
    if (this.#askedAt === null && silentMs >= this.#askMs) return this.#ask(this.#answerMs);
    if (this.#askedAt === null) return this.#lookIn(this.#askMs - silentMs);
    if (!isLate || this.#isLastChance) return this.#line.drop();
    this.#isLastChance = true;
    return this.#lookIn(1000);
  }
}

export class Client {
  /** What the server answered the latest login with. */
  welcome = null;
  /** How the connection before this one ended, {code, reason, at}, if the server remembers it. */
  previous = null;
  /** Messages that were dropped as they can't be read. */
  unreadableMessages = 0;

  #url; #options;
  #line = null; #watch = null; #isReady = false; // the present line; ready: logged in, and channels joined again
  #ready = deferred(); // gives the line once it is ready; another one after each loss
  #first = deferred();
  #over = deferred(); // rejected when the client has ended for good
  #error = null; // why the client has ended for good
  #waiting = new Map(); // id -> request
  #channels = new Map(); // channel -> callback: joined again after a reconnect
  #wishes = new Set(); #isJoining = false; // first joins that wait for their answer, those under way included
  #nextId = 1;
  #session = null; #isRenewing = false; #vainRenewals = 0;
  #attempts = 0; #askedMs = 0; #readyAt = 0; #wake = () => {}; #lastCode = 1006;
  #onWake = ({ type }) => this.#wakeUp(type);

  constructor(url, options = {}) {
    this.#url = url;
    this.#options = { ...DEFAULTS, ...options };
  }

  publish(channel, data) { return this.#ask({ type: "publish", channel, data }); }
  direct(to, data) { return this.#ask({ type: "direct", to, data }); }
  broadcast(data) { return this.#ask({ type: "broadcast", data }); }
  presence(channel) { return this.#ask({ type: "presence", channel }); }
  ping() { return this.#ask({ type: "ping" }); }
  request(type, data = null) { return this.#ask({ type, data }).then((reply) => reply.data); }

  /** Joins a channel; the callback gets its publications, also after reconnects. Many that are asked for at once go
   *  together, and none is given up for a rate: its timeout is for a server that answers no join at all. */
  async join(channel, callback) {
    if (this.#error) throw this.#error;
    if (this.#wishes.size >= MAX_WISHES) throw failure("TooManyRequests", `${MAX_WISHES} joins are under way`);
    joinBytes([channel]); // what JSON can't express fails at once
    const wish = deferred({ channel, callback, isSent: false, isAlone: false });
    this.#wishes.add(wish);
    this.#beginTime(wish);
    if (!this.#isJoining) this.#joinWishes();
    return wish.promise;
  }

  async leave(channel) {
    this.#channels.delete(channel); // at once: nothing more of it is wanted, nor joining it again
    if (!this.#isReady) return undefined;
    const before = [...this.#wishes].filter((wish) => wish.channel === channel);
    if (before.length) { // asked for before, and perhaps not sent yet
      await Promise.allSettled(before.map(({ promise }) => promise));
      this.#channels.delete(channel);
    }
    return this.#ask({ type: "leave", channel });
  }

  /** Renews the login on the open connection. A token that was given as a string is replaced. */
  async refresh(token) {
    const before = this.welcome?.expires;
    const reply = await this.#ask({ type: "refresh", token }, (reply) => (this.#session = reply.session ?? null));
    if (typeof this.#options.token === "string") this.#options.token = token;
    if (this.welcome) this.welcome.expires = reply.expires;
    this.#vainRenewals = reply.expires > before ? 0 : this.#vainRenewals + 1;
    return reply;
  }

  /** Ends it for good, whatever is under way. */
  close() {
    this.#finish(closed({ code: 1000, reason: "by the caller" }));
  }

  /** Connects; resolves with the client after the welcome. The first connection is never tried twice. */
  open() {
    for (const type of ["online", "pageshow"]) globalThis.addEventListener?.(type, this.#onWake);
    for (const type of ["visibilitychange", "resume"]) globalThis.document?.addEventListener(type, this.#onWake);
    this.#run().catch((error) => this.#finish(error));
    return this.#first.promise;
  }

  // --- connections, one after the other ---

  async #run() {
    const { reconnect, onState } = this.#options;
    while (!this.#error) {
      const { code, error, isSessionRefused } = await this.#connect();
      if (this.#error) return;
      if (isSessionRefused) continue; // nothing was wrong but the session: the token is next
      this.#lastCode = code;
      const next = policy(code);
      if (!this.#readyAt || !reconnect || next === "never") return this.#finish(error);
      const delayMs = this.#delayMs(next);
      tell(onState, "reconnecting", { code, delayMs });
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, delayMs);
        this.#wake = () => (clearTimeout(timer), resolve());
      });
      this.#wake = () => {};
    }
  }

  /** One connection from its login to its end; resolves with how it ended. */
  async #connect() {
    const { lines, timeoutMs, pingMs, onState } = this.#options;
    const usedSession = this.#session;
    let line = null;
    let end;
    let error = null;
    try {
      const login = await this.#credentials(); // before the socket: the server gives a login only seconds
      if (this.#error) return {};
      const protocol = lines ? "starlight.v1.lines" : "starlight.v1";
      const onText = (text) => this.#hear(line, text);
      line = this.#line = new Line(this.#url, protocol, onText, (...end) => this.#lost(...end));
      await within(timeoutMs, line.opened.promise, "no connection in time");
      await this.#exchange(line, { type: "login", ...login, previous: this.welcome?.client });
      if (!line.welcome) throw failure("ProtocolError", "the login was answered with something else than a welcome");
      this.#watch = new Watch(line, pingMs);
      await this.#joinAgain(line);
      if (!line.isOver) {
        this.#isReady = true;
        this.#readyAt = Date.now();
        this.#ready.resolve(line);
        this.#first.resolve(this);
        tell(onState, "connected");
      }
    } catch (caught) {
      error = caught;
      line?.drop();
    }
    if (line) end = await line.ended.promise;
    const code = end?.code ?? this.#lastCode;
    const isSessionRefused = usedSession !== null && !line?.welcome && [4500, 4501].includes(code);
    if (isSessionRefused || code === 4014) this.#session = null;
    return { code, isSessionRefused, error: error ?? closed(end) };
  }

  /** A line has ended: what was under way on it fails, and what is asked from now on waits for the next one. */
  #lost(line, end) {
    this.#watch?.stop();
    for (const [id, request] of this.#waiting) if (request.line === line) this.#settle(id).reject(closed(end));
    if (!this.#isReady) return;
    this.#isReady = false;
    this.#ready = deferred();
    if (Date.now() - this.#readyAt > STABLE_MS) this.#attempts = 0;
  }

  #finish(error) {
    if (this.#error) return;
    this.#error = error;
    for (const type of ["online", "pageshow"]) globalThis.removeEventListener?.(type, this.#onWake);
    for (const type of ["visibilitychange", "resume"]) globalThis.document?.removeEventListener(type, this.#onWake);
    this.#line?.drop(1000, "by the caller");
    for (const id of [...this.#waiting.keys()]) this.#settle(id).reject(error);
    for (const wish of [...this.#wishes]) this.#conclude(wish, error);
    this.#over.reject(error);
    this.#ready.reject(error);
    this.#first.reject(error);
    this.#wake();
    tell(this.#options.onState, "closed", error);
  }

  #delayMs(next) {
    const { backoffMs, backoffMaxMs } = this.#options;
    const doublings = this.#attempts++ + (next === "backoff" ? SPREAD : 0);
    const askedMs = this.#askedMs;
    this.#askedMs = 0;
    return askedMs + Math.random() * Math.min(backoffMaxMs, backoffMs * 2 ** doublings);
  }

  /** The network is back, or the page is seen again: try now, and look whether the line is alive. */
  #wakeUp(type) {
    if (type === "visibilitychange" && document.visibilityState === "hidden") return; // it has just been hidden
    this.#wake();
    if (this.#isReady) this.#watch.checkNow();
  }

  // --- who it is ---

  async #credentials() {
    if (this.#session) return { token: this.#session };
    return this.#options.token === undefined ? { user: this.#options.user } : { token: await this.#freshToken() };
  }

  async #freshToken() {
    const { token, tokenTimeoutMs } = this.#options;
    const fresh = typeof token !== "function" ? token
      : await within(tokenTimeoutMs, Promise.race([this.#over.promise, Promise.resolve().then(token)]), "a slow token");
    if (typeof fresh !== "string") throw new TypeError(`expected a token that is a string, got ${typeof fresh}`);
    return fresh;
  }

  /** The login ends soon: renew it, at a random time so that not all clients ask at once. If that fails the server
   *  closes with 4014, and the next login asks again. */
  async #renew(line, seconds) {
    this.#isRenewing = true;
    try {
      await pause((Math.random() * clamp(seconds, 0, 86_400, 0) * 1000) / 3, line);
      if (line.isOver) return;
      const token = await this.#freshToken();
      if (!line.isOver) await this.refresh(token);
    } catch (error) {
      this.#vainRenewals++;
      tell(this.#options.onMessage, error);
    } finally {
      this.#isRenewing = false;
    }
  }

  // --- joining ---

  /** What is asked for at once goes out together, what is asked for before the answer in the next message, and so on,
   *  no faster than the server allows. */
  async #joinWishes() {
    this.#isJoining = true;
    for (let waitMs = 1000; this.#wishes.size; ) {
      const line = await this.#ready.promise.catch(() => null);
      if (!line) break; // there will be no other; #finish has told it
      const wishes = line.isOver ? [] : this.#nextWishes(line);
      if (!wishes.length) continue;
      const wasEnough = await this.#sendWishes(line, wishes);
      let pauseMs = joinPauseMs(line, wishes.map(({ channel }) => channel));
      if (wasEnough) pauseMs = waitMs * (0.5 + Math.random() / 2);
      waitMs = wasEnough ? Math.min(2 * waitMs, 5000) : 1000;
      for (const wish of this.#wishes) this.#beginTime(wish, pauseMs);
      if (this.#wishes.size) await pause(pauseMs, line);
    }
    this.#isJoining = false;
  }

  /** Those of the next message: each channel once, in order, and one alone if a message of several was refused. */
  #nextWishes(line) {
    const wishes = new Map();
    const limitBytes = joinLimitBytes(line);
    let sizeBytes = joinBytes([]);
    for (const wish of this.#wishes) {
      if (wish.isAlone) {
        if (!wishes.size) return [wish];
        continue;
      }
      if (wishes.has(wish.channel)) continue;
      sizeBytes += joinBytes([wish.channel]) - joinBytes([]);
      if (wishes.size && (wishes.size === JOINS_LIMIT || sizeBytes > limitBytes)) break;
      wishes.set(wish.channel, wish);
    }
    return [...wishes.values()];
  }

  /** One message; true if the server had enough for now. */
  async #sendWishes(line, wishes) {
    let errors = new Map();
    const onOk = (reply) => {
      errors = refusalsIn(reply);
      for (const wish of wishes) {
        const error = errors.get(wish.channel);
        this.#conclude(wish, error && failure(String(error.name), String(error.message), error.code), reply);
      }
    };
    for (const wish of wishes) wish.isSent = true;
    try {
      await this.#exchange(line, { type: "join", ...joinFields(wishes.map(({ channel }) => channel)) }, onOk);
    } catch (error) {
      const isOfAll = isAnswer(error) ? error.code !== 111 : error.name === "MessageTooBig"; // no channel's own
      for (const wish of wishes) {
        if (wishes.length > 1 && isOfAll) Object.assign(wish, { isSent: false, isAlone: true });
        else errors.set(wish.channel, error), this.#conclude(wish, error);
      }
    }
    return [...errors.values()].some(({ code }) => code === 111);
  }

  #beginTime(wish, pauseMs = 0) {
    clearTimeout(wish.timer);
    const late = () => this.#conclude(wish, failure("Timeout", "no reply to join"));
    wish.timer = setTimeout(late, pauseMs + this.#options.timeoutMs);
  }

  /** Tells who asked what became of it, unless it has to be asked again, for a rate. */
  #conclude(wish, error, reply) {
    if (error?.code === 111 && error.name !== "ConnectionLost") return void (wish.isSent = false);
    if (!this.#wishes.delete(wish)) return undefined;
    clearTimeout(wish.timer);
    if (error?.name === "Timeout" && wish.isSent && !this.#channels.has(wish.channel)) this.#sayLeave(wish.channel);
    if (error) return wish.reject(error);
    this.#channels.set(wish.channel, wish.callback);
    return wish.resolve(reply);
  }

  // --- joining again ---

  /** Many channels in one message, one message after the other. What is left after the first round, refused for a rate
   *  or a limit, goes on beside the application's requests. */
  async #joinAgain(line) {
    const left = new Set(this.#channels.keys());
    const rejoin = { line, left, isOneByOne: false, patientUntil: Date.now() + PATIENCE_MS };
    await this.#joinRound(rejoin, this.#options.timeoutMs);
    if (rejoin.left.size) this.#joinRest(rejoin).catch(() => line.drop()); // it answers no join, or it is over anyway
  }

  async #joinRest(rejoin) {
    for (let waitMs = 1000; rejoin.left.size && !rejoin.line.isOver; waitMs = Math.min(2 * waitMs, 30_000)) {
      await pause(waitMs * (0.5 + Math.random() / 2), rejoin.line);
      if (!rejoin.line.isOver) await this.#joinRound(rejoin, Infinity);
    }
  }

  async #joinRound(rejoin, withinMs) {
    const endAt = Date.now() + withinMs;
    let pauseMs = 0;
    for (const names of this.#joinMessages(rejoin)) {
      if (pauseMs) await pause(pauseMs, rejoin.line);
      if (Date.now() >= endAt || !(await this.#joinSome(rejoin, names))) return;
      pauseMs = joinPauseMs(rejoin.line, names);
    }
  }

  *#joinMessages(rejoin) {
    const limitBytes = joinLimitBytes(rejoin.line);
    let names = [];
    for (const name of [...rejoin.left]) {
      if (!this.#channels.has(name)) {
        rejoin.left.delete(name); // left in the meantime
        continue;
      }
      const isFull = rejoin.isOneByOne || names.length === JOINS_LIMIT || joinBytes([...names, name]) > limitBytes;
      if (names.length && isFull) {
        yield names;
        names = [];
      }
      names.push(name);
    }
    if (names.length) yield names;
  }

  /** One message; false if the server had enough for now. */
  async #joinSome(rejoin, names) {
    let refusals = new Map();
    try {
      refusals = refusalsIn(await this.#exchange(rejoin.line, { type: "join", ...joinFields(names) }));
    } catch (error) {
      if (!isAnswer(error) && !(error.name === "MessageTooBig" && names.length === 1)) throw error;
      if (names.length > 1 && ![100, 106, 111].includes(error.code)) {
        rejoin.isOneByOne = true; // whatever is wrong with the message, it is not wrong with all channels
        return false;
      }
      for (const name of names) refusals.set(name, error);
    }
    for (const name of names) this.#joinedAgain(rejoin, name, refusals.get(name));
    return ![...refusals.values()].some(({ code }) => code === 111);
  }

  #joinedAgain(rejoin, name, error) {
    if (error?.code === 111 || ([100, 106].includes(error?.code) && Date.now() < rejoin.patientUntil)) return; // later
    rejoin.left.delete(name);
    if (!error || error.code === 105) {
      if (!this.#channels.has(name) && !this.#isReady) this.#sayLeave(name, rejoin.line);
    } else if (this.#channels.delete(name)) {
      const { code, name: kind, message } = error;
      tell(this.#options.onMessage, { type: "error", channel: name, code, name: kind, message });
    }
  }

  #sayLeave(channel, line = this.#isReady ? this.#line : null) {
    if (line && !line.isOver) line.send(JSON.stringify({ type: "leave", channel }));
  }

  // --- requests ---

  /** A request on the present line, or on the next one. */
  async #ask(message, onOk) {
    if (this.#error) throw this.#error;
    if (this.#waiting.size >= MAX_REQUESTS) throw failure("TooManyRequests", `${MAX_REQUESTS} are under way`);
    const [id, text, request] = this.#newRequest(message, onOk);
    try {
      for (let line; this.#waiting.has(id) && !request.line; ) {
        line = await Promise.race([this.#ready.promise, request.promise]);
        if (this.#waiting.has(id) && !line.isOver) this.#send(line, id, text, request);
      }
    } catch (error) {
      this.#settle(id)?.reject(error);
    }
    return request.promise;
  }

  /** A request on this line. */
  #exchange(line, message, onOk) {
    const [id, text, request] = this.#newRequest(message, onOk);
    if (line.isOver) this.#settle(id).reject(failure("ConnectionLost", "the connection has ended", 1006));
    else this.#send(line, id, text, request);
    return request.promise;
  }

  #newRequest(message, onOk) {
    const id = this.#nextId++;
    const text = JSON.stringify({ ...message, id }); // first: what JSON can't express fails at once
    const late = () => this.#settle(id)?.reject(failure("Timeout", `no reply to ${message.type}`));
    const request = deferred({ onOk, line: null, timer: setTimeout(late, this.#options.timeoutMs) });
    this.#waiting.set(id, request);
    return [id, text, request];
  }

  #send(line, id, text, request) {
    const limitBytes = limitsOf(line).message_bytes;
    const sizeBytes = limitBytes !== null && text.length * 3 > limitBytes ? sizeOf(text) : 0;
    if (sizeBytes > limitBytes && limitBytes !== null) {
      const why = `a message of ${sizeBytes} bytes was not sent: the server takes at most ${limitBytes}`;
      return this.#settle(id).reject(failure("MessageTooBig", why)); // it would have ended the connection
    }
    request.line = line;
    return line.send(text);
  }

  #settle(id) {
    const request = this.#waiting.get(id);
    clearTimeout(request?.timer);
    this.#waiting.delete(id);
    return request;
  }

  // --- what the server says ---

  #hear(line, text) {
    const isMany = this.#options.lines && typeof text === "string";
    for (const message of isMany ? text.split("\n").filter(Boolean) : [text]) this.#receive(line, message);
  }

  #receive(line, text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return this.#dropUnreadable(idOfUnreadable(String(text)));
    }
    if (!isObject(message) || typeof message.type !== "string") return this.#dropUnreadable(message?.id);
    const { onMessage, token } = this.#options;
    if (message.type === "publication") return tell(this.#channels.get(message.channel), message);
    if (message.type === "bye") this.#askedMs = clamp(message.retry_ms, 0, RETRY_LIMIT_MS, 0);
    if (message.type === "expiring" && typeof token === "function" && this.#vainRenewals < RENEWALS_LIMIT)
      return this.#isRenewing ? undefined : void this.#renew(line, message.seconds);
    const request = this.#waiting.get(message.id);
    if (request?.line === line) return this.#reply(line, message);
    return ["ok", "pong", "welcome"].includes(message.type) ? undefined : tell(onMessage, message);
  }

  #reply(line, message) {
    const request = this.#settle(message.id);
    const { type, name, code } = message;
    if (type === "error") return request.reject(failure(String(name), String(message.message), code));
    if (message.type === "welcome") {
      this.welcome = line.welcome = message;
      this.previous = isObject(message.previous) ? message.previous : null;
      this.#session = typeof message.session === "string" ? message.session : null;
      this.#vainRenewals = 0;
    }
    request.onOk?.(message);
    return request.resolve(message);
  }

  /** Counts what can't be read, and fails who waits for it. */
  #dropUnreadable(id) {
    this.unreadableMessages++;
    if (this.unreadableMessages === 1) console.warn("a message of the server can't be read; more are only counted");
    if (this.#waiting.get(id)?.line) this.#settle(id).reject(failure("ReplyUnreadable", "the reply can't be read"));
  }
}

/** The limits in a welcome, null where there is none or where it makes no sense. */
function limitsOf(line) {
  const limits = isObject(line.welcome?.limits) ? line.welcome.limits : {};
  const limit = (name) => (typeof limits[name] === "number" && limits[name] > 0 ? limits[name] : null);
  return { message_bytes: limit("message_bytes"), message_rate: limit("message_rate"), byte_rate: limit("byte_rate") };
}

/** Whether an error is what the server answered. */
function isAnswer({ name, code }) {
  return typeof code === "number" && name !== "ConnectionLost";
}

function joinFields(names) {
  return names.length === 1 ? { channel: names[0] } : { channels: names.map((channel) => ({ channel })) };
}

/** What a reply to a join of several says against some of them, by channel. */
function refusalsIn(reply) {
  const items = Array.isArray(reply.channels) ? reply.channels.filter(isObject) : [];
  return new Map(items.filter(({ error }) => isObject(error)).map(({ channel, error }) => [channel, error]));
}

/** About how large a join of these channels is. */
function joinBytes(names) {
  return names.reduce((sum, name) => sum + sizeOf(`{"channel":${JSON.stringify(name)}},`), 64);
}

function joinLimitBytes(line) {
  return Math.min(JOIN_BYTES, limitsOf(line).message_bytes ?? JOIN_BYTES);
}

/** How soon the next join may follow one of these channels. */
function joinPauseMs(line, names) {
  const { message_rate: messageRate, byte_rate: byteRate } = limitsOf(line);
  const pauseS = Math.max(1 / (messageRate ?? Infinity), joinBytes(names) / (byteRate ?? Infinity));
  return Math.min(pauseS, 5) * 1000;
}
