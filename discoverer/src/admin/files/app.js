"use strict";
// The page is complete without this. Here it becomes live, and can be searched. Text goes in by textContent and attributes by
// setAttribute alone: what comes from containers is never read as HTML.
(() => {
  const root = document.documentElement;
  const THEME = "discoverer-theme";
  const saved = () => { try { return localStorage.getItem(THEME); } catch { return null; } };
  if (saved() === "dark" || saved() === "light") root.setAttribute("data-theme", saved());

  const $ = (id) => document.getElementById(id);
  const FEED_LIMIT = 200;
  const REASONS = 20; // of one service
  const PART = 100; // rows of one table, as the server makes them
  const services = new Map(); // name -> { name, section, rows: Map(address -> row) }
  const order = new Intl.Collator("en", { numeric: true });

  // --- making elements -------------------------------------------------------------------------------------------------
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children) {
      if (child !== null && child !== undefined && child !== "") element.append(child);
    }
    return element;
  }
  const put = (element, text) => { if (element && element.textContent !== text) element.textContent = text; };

  function ago(at) {
    const seconds = Math.floor((Date.now() - Date.parse(at)) / 1000);
    if (seconds < 1) return "now";
    if (seconds < 60) return `${seconds} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
    if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
    return `${Math.floor(seconds / 86400)} d`;
  }
  function moment(at) {
    const whole = at.replace(/\.\d+/, "");
    return make("time", { datetime: whole, title: whole }, ago(at));
  }
  const spaced = (word) => String(word).replaceAll("_", " ");

  // --- services and instances ------------------------------------------------------------------------------------------
  function health(server) {
    if (server.is_down) return "no";
    return server.check.startsWith("UP") ? "yes" : "off";
  }
  function cells(i) {
    const server = i.haproxy;
    let check = "";
    if (i.reason) check = make("span", { class: "no" }, i.reason);
    else if (server) {
      check = make("span", { class: health(server), title: server.last_check }, server.check);
      if (server.check_status) check.append(" ", make("small", {}, server.check_status));
    }
    const tags = make("td");
    for (const tag of i.tags) tags.append(make("span", { class: "tag" }, tag), " ");
    const container = make("td", {}, i.name || "");
    if (i.id) container.append(" ", make("small", {}, i.id.slice(0, 12)));
    const sessions = server ? String(server.sessions) + (server.queued ? ` + ${server.queued}` : "") : "";
    return [
      make("td", {}, make("span", { class: `st ${i.status}` }, i.status)),
      make("th", { scope: "row" }, i.address),
      container, make("td", {}, i.host || ""), tags, make("td", {}, String(i.weight)),
      make("td", {}, check), make("td", {}, sessions), make("td", {}, i.started ? moment(i.started) : ""),
    ];
  }
  function fill(row, i) {
    row.replaceChildren(...cells(i));
    row.setAttribute("data-st", i.status);
    row.toggleAttribute("data-down", Boolean(i.haproxy && i.haproxy.is_down));
  }
  const bodies = (service) => service.section.getElementsByTagName("tbody");
  function part(service) {
    const number = bodies(service).length + 1;
    const body = make("tbody");
    service.section.append(make("div", { class: "part" }, make("table", {},
      make("caption", { class: "sr" }, `Instances of ${service.name}${number > 1 ? `, part ${number}` : ""}`),
      make("thead", {}, make("tr", {}, ...HEADS.map((name) => make("th", { scope: "col" }, name)))), body)));
    return body;
  }
  function append(service, row) {
    const all = bodies(service);
    const last = all[all.length - 1];
    (last && last.rows.length < PART ? last : part(service)).append(row);
  }
  // The first in order of those that are behind an address, found by halving.
  function behind(count, address, of) {
    let low = 0, high = count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (order.compare(of(middle), address) < 0) low = middle + 1; else high = middle;
    }
    return low;
  }
  function insert(service, row, address) {
    const all = [...bodies(service)].filter((body) => body.rows.length);
    const at = (rows, index) => rows[index].getAttribute("data-a");
    const body = all[behind(all.length, address, (index) => at(all[index].rows, all[index].rows.length - 1))];
    if (!body) { append(service, row); return; }
    body.insertBefore(row, body.rows[behind(body.rows.length, address, (index) => at(body.rows, index))] || null);
  }
  function place(service, i, isNew) {
    let row = service.rows.get(i.address);
    if (!row) {
      row = make("tr", { "data-a": i.address });
      service.rows.set(i.address, row);
      insert(service, row, i.address);
    }
    fill(row, i);
    if (isNew) {
      row.classList.remove("fresh");
      void row.offsetWidth;
      row.classList.add("fresh");
    }
    show(service, row);
  }
  const HEADS = ["Status", "Address", "Container", "Host", "Tags", "Weight", "HAProxy", "Sessions", "Age"];
  function settings(s) {
    const parts = [s.mode, s.host, s.path, s.listen && `port ${s.listen}`, s.balance, s.check && `check ${s.check}`,
      s.slowstart && `slowstart ${s.slowstart}`, s.maxconn && `maxconn ${s.maxconn}`, s.proto !== "http" && s.proto,
      s.sticky && "sticky"];
    return parts.filter(Boolean).join(" · ");
  }
  function sum(s) {
    const parts = ["up", "draining", "suspect", "refused"].filter((word) => s.instances_by_status[word])
      .map((word) => `${s.instances_by_status[word]} ${word}`);
    return parts.join(" · ") || "no instance";
  }
  function head(s) {
    let service = services.get(s.name);
    if (!service) {
      const section = make("section", { class: "service", "data-s": s.name },
        make("div", { class: "title" }), make("ul", { class: "why" }));
      service = { name: s.name, section, rows: new Map() };
      services.set(s.name, service);
      const after = [...$("list").children].find((other) => other.getAttribute("data-s") > s.name);
      $("list").insertBefore(section, after || null);
      choices.stale = true;
    }
    service.section.setAttribute("data-st", s.status);
    service.section.firstElementChild.replaceChildren(make("h3", {}, s.name), " ",
      make("span", { class: `st ${s.status}` }, s.status), " ", make("span", { class: "meta" }, settings(s)), " ",
      make("span", { class: "sum" }, sum(s)));
    if (s.left_out) {
      const why = s.left_out.slice(0, REASONS).map((entry) => make("li", {}, `${entry.subject}: ${entry.reason}`));
      const more = (s.left_out_total ?? s.left_out.length) - why.length;
      if (more > 0) why.push(make("li", {}, `and ${more} more`));
      service.section.children[1].replaceChildren(...why);
    }
    return service;
  }
  function adopt() {
    services.clear();
    for (const section of $("list").children) {
      const rows = new Map();
      for (const row of section.querySelectorAll("tr[data-a]")) rows.set(row.getAttribute("data-a"), row);
      services.set(section.getAttribute("data-s"), { name: section.getAttribute("data-s"), section, rows });
    }
  }

  // --- the head of the page --------------------------------------------------------------------------------------------
  const VERDICTS = { ok: "All is well", note: "All is well, with something to note", warning: "Running, with something to look at", error: "Something is wrong" };
  function troubles(list) {
    const level = ["error", "warning", "note"].find((level) => list.some((one) => one.level === level)) || "ok";
    $("state").setAttribute("class", `state ${level}`);
    put($("verdict"), VERDICTS[level]);
    $("troubles").replaceChildren(...list.map((one) => make("li", { class: one.level },
      make("p", {}, make("strong", {}, one.what), " ", make("span", {}, one.advice)),
      one.words ? make("pre", {}, one.words) : null)));
  }
  const DEAD = { connecting: "", connected: "good", unreachable: "bad", running: "good", "not running": "bad" };
  function field(card, key, value, none) {
    const element = $(card).querySelector(`[data-f="${key}"]`);
    if (!element) return;
    const isTime = typeof value === "string" && /^\d{4}-\d\d-\d\dT/.test(value);
    if (isTime) element.replaceChildren(moment(value)); else put(element, value === null ? none || "" : String(value));
    if (key === "connection" || key === "is_up") element.setAttribute("class", DEAD[element.textContent] || "");
  }
  function registry(fields) {
    const none = { last_change: "none yet", stale_since: "not stale" };
    for (const [key, value] of Object.entries(fields)) {
      field("registry", key, Array.isArray(value) ? value.join(", ") : value, none[key]);
    }
  }
  function haproxy(fields) {
    const put = (key, value, none) => field("haproxy", key, value, none);
    for (const [key, value] of Object.entries(fields)) {
      if (key === "is_up") put(key, value === null ? "not known" : value ? "running" : "not running");
      else if (key === "applied") put(key, value && value.at, "not yet");
      else if (key === "last_reload") {
        put(key, value && value.at, "none");
        put("reload_reason", value && value.reason);
      } else if (key === "reloads") {
        put(key, Object.entries(value).map(([reason, count]) => `${count} ${spaced(reason)}`).join(", ") || "none");
      } else put(key, value, "not known");
    }
  }
  function total(name, count) {
    const element = document.querySelector(`[data-total="${name}"]`);
    if (element) put(element, String(count));
  }
  const added = (counts) => Object.values(counts).reduce((all, one) => all + one, 0);
  function status(fields) {
    if (fields.troubles) troubles(fields.troubles);
    if (fields.services_by_status) total("services", added(fields.services_by_status));
    if (fields.instances_by_status) {
      total("instances", added(fields.instances_by_status));
      for (const word of ["up", "draining", "suspect", "refused"]) total(word, fields.instances_by_status[word] || 0);
    }
  }
  const countDown = () => total("down", $("list").querySelectorAll("tr[data-down]").length);
  function leftOut(list, count) {
    $("left-out").hidden = count === 0;
    $("left-out-more").hidden = count <= list.length;
    put($("left-out-count"), String(count));
    $("left-out-rows").replaceChildren(...list.map((entry) => make("tr", {}, make("td", {}, entry.what),
      make("th", { scope: "row" }, entry.subject), make("td", {}, entry.reason))));
  }
  let noted = 0; // the number of the last note
  function note(n) {
    if (n.number <= noted) return;
    noted = n.number;
    const item = make("li", { class: n.what }, make("span", { class: "what" }, spaced(n.what)));
    if (n.service) item.append(" ", make("b", {}, n.service));
    if (n.address) item.append(" ", make("code", {}, n.address));
    item.append(" ", moment(n.at));
    if (n.words) item.append(" ", make("span", { class: "words" }, n.words));
    $("feed").prepend(item);
    while ($("feed").childElementCount > FEED_LIMIT) $("feed").lastElementChild.remove();
  }

  // --- search and filters; their state is the URL's hash ---------------------------------------------------------------
  const filter = { q: "", status: "", service: "", tag: "" };
  const choices = { stale: true };
  const controls = {};
  const isFiltered = () => Object.values(filter).some(Boolean);
  function fits(service, row) {
    if (filter.service && service.name !== filter.service) return false;
    if (filter.status === "down" ? !row.hasAttribute("data-down") : filter.status && row.getAttribute("data-st") !== filter.status) {
      return false;
    }
    if (filter.tag && ![...row.cells[4].children].some((tag) => tag.textContent === filter.tag)) return false;
    return !filter.q || service.name.toLowerCase().includes(filter.q) || row.textContent.toLowerCase().includes(filter.q);
  }
  const show = (service, row) => { row.hidden = isFiltered() && !fits(service, row); };
  let isDue = false;
  function sectionsLater() {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => { isDue = false; sections(); });
  }
  function sections() {
    let seen = 0;
    for (const service of services.values()) {
      const named = !filter.status && !filter.tag && (!filter.service || filter.service === service.name)
        && service.name.toLowerCase().includes(filter.q);
      let rows = 0;
      for (const body of bodies(service)) {
        const here = isFiltered() ? [...body.rows].filter((row) => !row.hidden).length : body.rows.length;
        body.closest(".part").hidden = here === 0;
        rows += here;
      }
      const some = !isFiltered() || rows > 0 || (service.rows.size === 0 && named);
      service.section.hidden = !some;
      seen += some ? 1 : 0;
    }
    $("none").hidden = seen > 0 || services.size === 0;
    countDown();
    if (choices.stale) choose();
  }
  function sift() {
    const filtered = isFiltered();
    for (const service of services.values()) {
      for (const row of service.rows.values()) {
        const hide = filtered && !fits(service, row);
        if (row.hidden !== hide) row.hidden = hide;
      }
    }
    sections();
  }
  function choose() {
    choices.stale = false;
    const tags = new Set();
    for (const tag of $("list").getElementsByClassName("tag")) tags.add(tag.textContent);
    const fillSelect = (select, all, names) => select.replaceChildren(make("option", { value: "" }, all),
      ...names.map((name) => make("option", { value: name }, name)));
    fillSelect(controls.service, "every service", [...services.keys()].sort());
    fillSelect(controls.tag, "every tag", [...tags].sort());
    for (const name of ["service", "tag"]) {
      if (filter[name] && ![...controls[name].options].some((one) => one.value === filter[name])) {
        controls[name].append(make("option", { value: filter[name] }, filter[name]));
      }
      controls[name].value = filter[name];
    }
  }
  function fromHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of Object.keys(filter)) {
      filter[name] = name === "q" ? (given.get(name) || "").toLowerCase() : given.get(name) || "";
    }
    controls.q.value = given.get("q") || "";
    controls.status.value = filter.status;
    choices.stale = true;
    sift();
  }
  function toHash() {
    const given = new URLSearchParams();
    for (const [name, control] of Object.entries(controls)) if (control.value) given.set(name, control.value);
    history.replaceState(null, "", given.size ? `#${given}` : location.pathname + location.search);
    for (const [name, control] of Object.entries(controls)) {
      filter[name] = name === "q" ? control.value.trim().toLowerCase() : control.value;
    }
    sift();
  }
  function filters() {
    controls.q = make("input", { type: "search", placeholder: "Search: name, address, host, id", "aria-label": "Search",
      autocomplete: "off", spellcheck: "false" });
    controls.status = make("select", { "aria-label": "Status" }, make("option", { value: "" }, "every status"),
      ...["up", "draining", "suspect", "refused", "down"].map((word) => make("option", { value: word }, word)));
    controls.service = make("select", { "aria-label": "Service" });
    controls.tag = make("select", { "aria-label": "Tag" });
    $("filters").append(...Object.values(controls));
    $("filters").hidden = false;
    let pause = 0;
    controls.q.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(toHash, 120); });
    for (const name of ["status", "service", "tag"]) controls[name].addEventListener("change", toHash);
    addEventListener("hashchange", () => {
      // Another kind of hash, as the skip link's: the filters stay, and the address says so.
      if (location.hash && !location.hash.includes("=")) toHash(); else fromHash();
    });
    addEventListener("keydown", (event) => {
      const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName || "");
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); controls.q.focus(); }
      if (event.key === "Escape" && document.activeElement === controls.q) { controls.q.value = ""; toHash(); }
    });
    fromHash();
  }

  // --- the stream ------------------------------------------------------------------------------------------------------
  let version = 0;
  let loading = null; // what is to be taken in when everything has been loaded again
  let isOvertaken = false; // what is being loaded is older than the last reset
  const take = (what) => { if (loading) loading.push(what); else what(); };
  function change(delta) {
    if (delta.version <= version) return;
    version = delta.version;
    for (const name of delta.services_gone || []) {
      services.get(name)?.section.remove();
      services.delete(name);
      choices.stale = true;
    }
    for (const s of delta.services || []) head(s);
    for (const gone of delta.instances_gone || []) {
      const service = services.get(gone.service);
      service?.rows.get(gone.address)?.remove();
      service?.rows.delete(gone.address);
    }
    for (const i of delta.instances || []) {
      const service = services.get(i.service);
      if (!service) continue;
      place(service, i, true);
      if (i.tags.length) choices.stale = true;
    }
    if (delta.status) status(delta.status);
    if (delta.registry) registry(delta.registry);
    if (delta.haproxy) haproxy(delta.haproxy);
    if (delta.left_out) leftOut(delta.left_out, delta.left_out_total);
    for (const n of delta.notes || []) note(n);
    sectionsLater();
  }
  function figures(rows) {
    for (const [name, address, check, down, ended, words, , sessions, queued] of rows) {
      const service = services.get(name);
      const row = service?.rows.get(address);
      if (!row || row.getAttribute("data-st") === "refused") continue;
      if (check === undefined) {
        row.cells[6].replaceChildren();
        row.cells[7].replaceChildren();
        row.removeAttribute("data-down");
        continue;
      }
      let span = row.cells[6].firstElementChild;
      if (!span) { span = make("span"); row.cells[6].replaceChildren(span); }
      const text = ended ? `${check} ${ended}` : check;
      const kind = health({ is_down: down, check });
      if (span.textContent !== text || span.getAttribute("class") !== kind) {
        span.replaceChildren(check, ...(ended ? [" ", make("small", {}, ended)] : []));
        span.setAttribute("class", kind);
      }
      if (words) span.setAttribute("title", words); else span.removeAttribute("title");
      put(row.cells[7], String(sessions) + (queued ? ` + ${queued}` : ""));
      if (row.hasAttribute("data-down") !== Boolean(down)) {
        row.toggleAttribute("data-down", Boolean(down));
        show(service, row);
      }
    }
    sectionsLater();
  }
  async function get(path) {
    const reply = await fetch(path, { cache: "no-store" });
    if (!reply.ok) throw new Error(String(reply.status));
    return reply.json();
  }
  // What came before a loading begins is in what it loads; what comes meanwhile waits. A reset meanwhile stands for changes
  // that are in neither: then everything is loaded once more.
  async function reload() {
    if (loading) { isOvertaken = true; return; }
    for (;;) {
      loading = [];
      isOvertaken = false;
      try {
        // The rest must not be older than the services: their version says which changes are still to come.
        const all = await get("api/v1/services");
        const [now, feed] = await Promise.all([get("api/v1/status"), get("api/v1/feed")]);
        showAll(all, now, feed);
        if (!isOvertaken) break;
      } catch {
        await new Promise((again) => setTimeout(again, 2000 + Math.random() * 2000));
      }
    }
    const waiting = loading;
    loading = null;
    for (const what of waiting) what();
  }
  function showAll(all, now, feed) {
    services.clear();
    $("list").replaceChildren();
    for (const s of all.services) {
      const service = head(s);
      for (const i of s.instances) {
        const row = make("tr", { "data-a": i.address });
        fill(row, i);
        service.rows.set(i.address, row);
        append(service, row);
      }
    }
    status(now);
    registry(now.registry);
    haproxy(now.haproxy);
    leftOut(now.left_out.slice(0, 100), now.left_out.length + now.more_left_out);
    $("feed").replaceChildren();
    noted = 0;
    feed.notes.slice(-60).forEach(note);
    version = all.version;
    sift();
  }
  function live(isOn) {
    $("live").setAttribute("class", isOn ? "live on" : "live off");
    put($("live"), isOn ? "live" : "connection lost, trying again");
  }
  function follow() {
    const source = new EventSource(`api/v1/events?last_event_id=${encodeURIComponent(root.getAttribute("data-event-id"))}`);
    version = Number((root.getAttribute("data-event-id") || "").split("-")[1]) || 0;
    source.addEventListener("open", () => live(true));
    source.addEventListener("error", () => {
      live(false);
      // A server that answers otherwise than with a stream ends it for good: begin anew.
      if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 3000 + Math.random() * 3000);
    });
    source.addEventListener("change", (event) => { const delta = JSON.parse(event.data); take(() => change(delta)); });
    source.addEventListener("stats", (event) => { const { rows } = JSON.parse(event.data); take(() => figures(rows)); });
    source.addEventListener("reset", reload);
    addEventListener("pagehide", () => source.close());
  }
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  document.addEventListener("DOMContentLoaded", () => {
    if (!$("list")) return; // the discoverer has only just begun
    const isDark = () => (root.getAttribute("data-theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const name = () => put($("theme"), isDark() ? "Light" : "Dark");
    $("theme").hidden = false;
    $("theme").addEventListener("click", () => {
      const theme = isDark() ? "light" : "dark";
      root.setAttribute("data-theme", theme);
      try { localStorage.setItem(THEME, theme); } catch { /* then it lasts as long as the page */ }
      name();
    });
    name();
    adopt();
    filters();
    follow();
    setInterval(() => {
      for (const time of document.getElementsByTagName("time")) put(time, ago(time.getAttribute("datetime")));
    }, 10000);
  });
})();
