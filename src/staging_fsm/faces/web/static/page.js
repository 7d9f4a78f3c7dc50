// Live updates: the server says that something changed, and the page is fetched again and its
// content put in place. Without this file the page says the same and is reloaded by hand.
"use strict";

(() => {
  const main = document.getElementById("main");
  const button = document.getElementById("live");
  const words = document.getElementById("live-words");
  const spoken = document.getElementById("spoken");
  let source = null;
  let busy = false;
  let again = false;

  const say = (text, lost) => {
    words.textContent = text;
    document.body.classList.toggle("lost", lost);
  };

  // What the reader has opened, reached by keyboard or scrolled to stays so.
  const replace = (fresh) => {
    const before = (document.getElementById("summary") || {}).textContent;
    const open = new Map();
    for (const part of main.querySelectorAll("details[id]")) open.set(part.id, part.open);
    const scrolled = [...main.querySelectorAll("pre, .scroll")].map((part) => [
      part.scrollTop,
      part.scrollLeft,
      part.scrollTop + part.clientHeight >= part.scrollHeight - 4,
    ]);
    const focusable = "a, summary, [tabindex='0']";
    const at = [...main.querySelectorAll(focusable)].indexOf(document.activeElement);
    main.replaceChildren(...fresh.childNodes);
    for (const [id, isOpen] of open) {
      const part = document.getElementById(id);
      if (part) part.open = isOpen;
    }
    [...main.querySelectorAll("pre, .scroll")].forEach((part, number) => {
      const [top, left, atEnd] = scrolled[number] || [0, 0, false];
      part.scrollTop = atEnd ? part.scrollHeight : top;
      part.scrollLeft = left;
    });
    const focused = at >= 0 && main.querySelectorAll(focusable)[at];
    if (focused) focused.focus({ preventScroll: true });
    const state = main.querySelector("#summary");
    const title = state && state.dataset.spoken;
    if (title && before !== undefined && spoken.textContent !== title) spoken.textContent = title;
  };

  const refresh = async () => {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.title = page.title;
      const fresh = page.getElementById("main");
      replace(fresh);
      delete main.dataset.old;
      say(`As of ${fresh.dataset.asOf}.`, false);
    } catch {
      say("The server does not answer. What stands here is old.", true);
    }
    busy = false;
    if (again) {
      again = false;
      refresh();
    }
  };

  const start = () => {
    source = new EventSource(document.body.dataset.events);
    source.addEventListener("changed", refresh);
    source.addEventListener("listening", () => {
      document.body.dataset.listening = "yes";
      // What changed while nobody listened is on no page yet.
      if (main.dataset.old) refresh();
    });
    source.onerror = () => {
      document.body.dataset.listening = "no";
      main.dataset.old = "yes";
      say("Connection lost; trying again. What stands here may be old.", true);
    };
    button.setAttribute("aria-pressed", "true");
  };

  const stop = () => {
    source.close();
    source = null;
    main.dataset.old = "yes";
    button.setAttribute("aria-pressed", "false");
    say(`${words.textContent.replace(/ Paused\.$/, "")} Paused.`, false);
  };

  button.hidden = false;
  button.addEventListener("click", () => (source ? stop() : start()));
  say(`As of ${main.dataset.asOf}.`, false);
  for (const part of main.querySelectorAll("pre")) part.scrollTop = part.scrollHeight;
  const diagram = main.querySelector(".diagram");
  const current = diagram && diagram.querySelector(".current");
  if (current) {
    const [outer, inner] = [diagram.getBoundingClientRect(), current.getBoundingClientRect()];
    diagram.scrollLeft += inner.left + inner.width / 2 - outer.left - outer.width / 2;
  }
  start();
})();
