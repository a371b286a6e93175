// One app's requests: sends them, and keeps what became of each.

/** Requests a second, and what each of them asks for: the rows of the chart. */
export const PLAN = ["books", "guess", "basket", "guess", "books", "guess", "books", "basket", "guess", "books"];
/** The rows from above, by what is asked. */
export const ROWS = { books: [0, 1, 2, 3], basket: [4, 5], guess: [6, 7, 8, 9] };
/** What the limit on guesses says; a tenth less than the period allows for clocks that read a reply's arrival. */
const LIMIT = 5, PERIOD = 9.0;
/** Seconds after which an answer came late, and after which the visitor gives up. */
const LATE = 1.5, PATIENCE = 15;
const KEPT = 150;

export class Lane {
  constructor(base, onWorker) {
    this.base = base;
    this.onWorker = onWorker;
    this.columns = new Map(); // second → one request for each row
    this.reset();
  }

  reset() {
    this.beyond = 0;
    this.errors = 0;
    this.longest = 0;
    this.served = 0;
    this.bad = []; // when requests were sent that met an error or a refusal
    this.tried = []; // when guesses were let in
    this.retryAt = 0;
  }

  /** Send one request into a row of a second. */
  async send(second, row, what) {
    const request = { what, row, sent: Date.now() / 1000, outcome: "wait" };
    if (!this.columns.has(second)) {
      this.columns.set(second, []);
      if (this.columns.size > KEPT) this.columns.delete(this.columns.keys().next().value);
    }
    this.columns.get(second)[row] = request;
    const patience = new AbortController();
    const timer = setTimeout(() => patience.abort(), PATIENCE * 1000);
    try {
      const response = await ask(this.base, what, patience.signal);
      await response.arrayBuffer();
      this.settle(request, response);
    } catch (error) {
      request.outcome = "none";
      this.errors += 1;
      this.bad.push(request.sent);
    }
    clearTimeout(timer);
    request.took = Date.now() / 1000 - request.sent;
    request.late = request.took > LATE;
    this.longest = Math.max(this.longest, request.took);
  }

  settle(request, response) {
    const now = Date.now() / 1000;
    request.outcome = `s${response.status}`;
    if (response.headers.has("X-Worker")) this.onWorker(response.headers.get("X-Worker"), response.status);
    if (response.status === 503) this.retryAt = now + Number(response.headers.get("Retry-After"));
    if (response.status === 200) this.served += 1;
    if (response.status >= 500) this.bad.push(request.sent);
    if (response.status >= 500 && response.status !== 503) {
      request.outcome = "s500";
      this.errors += 1;
    }
    if (request.what === "guess" && response.status === 401) {
      this.tried = this.tried.filter((at) => now - at < PERIOD);
      this.tried.push(now);
      if (this.tried.length > LIMIT) {
        request.outcome = "beyond";
        this.beyond += 1;
      }
    }
  }

  /** The requests of the last seconds. */
  recent(seconds) {
    const since = Date.now() / 1000 - seconds;
    return [...this.columns.values()].slice(-seconds - 2).flat().filter((one) => one && one.sent >= since);
  }

  waiting() {
    return [...this.columns.values()].flat().filter((one) => one && one.outcome === "wait");
  }
}

export function guess() {
  return new URLSearchParams({ username: `user${Math.floor(Math.random() * 1e6)}`, password: "123456" });
}

/** Ask for one thing. Forms and GETs need no preflight from the other port. */
export function ask(base, what, signal) {
  const options = { cache: "no-store", credentials: "include", signal };
  if (what === "books") return fetch(`${base}/api/books`, options);
  if (what === "basket") return fetch(`${base}/api/basket`, { ...options, method: "POST" });
  // Another account each time: a limit for each account alone would not notice.
  return fetch(`${base}/api/token`, { ...options, method: "POST", body: guess() });
}
