// Keeps the numbers of a page current. The page works without it: reload it then.
"use strict";
(function () {
  var live = document.getElementById("live");
  var status = document.getElementById("status");
  var url = live && live.dataset.events;
  var source = null;
  var ended = false;
  if (!url || !window.EventSource) return;

  function say(text) {
    if (status.textContent !== text) status.textContent = text;
  }

  function parsed(html) {
    var template = document.createElement("template");
    template.innerHTML = html;
    return template.content;
  }

  function copyAttributes(from, to) {
    Array.from(to.attributes).forEach(function (a) {
      if (a.name !== "open" && !from.hasAttribute(a.name)) to.removeAttribute(a.name);
    });
    Array.from(from.attributes).forEach(function (a) {
      if (to.getAttribute(a.name) !== a.value) to.setAttribute(a.name, a.value);
    });
  }

  // Makes the content of one element that of another. Elements that stay are not replaced, so that
  // the focus, a selection and the place in a table are kept.
  function update(to, from) {
    var now = Array.from(from.childNodes);
    now.forEach(function (node, i) {
      var old = to.childNodes[i];
      if (!old) {
        to.appendChild(node);
      } else if (old.nodeType === node.nodeType && old.nodeName === node.nodeName &&
                 (old.id || "") === (node.id || "")) {
        if (node.nodeType === 1) {
          copyAttributes(node, old);
          update(old, node);
        } else if (old.data !== node.data) {
          old.data = node.data;
        }
      } else {
        var same = node.nodeType === 1 && node.id && document.getElementById(node.id);
        if (same && same.parentNode === to) {
          to.insertBefore(same, old);
          copyAttributes(node, same);
          update(same, node);
        } else {
          to.insertBefore(node, old);
        }
      }
    });
    while (to.childNodes.length > now.length) to.removeChild(to.lastChild);
  }

  function connect() {
    if (source || ended || document.hidden) return;
    source = new EventSource(url);
    source.addEventListener("open", function () { say("live"); });
    source.addEventListener("all", function (e) { update(live, parsed(e.data)); });
    source.addEventListener("part", function (e) {
      Array.from(parsed(e.data).children).forEach(function (part) {
        var old = document.getElementById(part.id);
        if (old) {
          copyAttributes(part, old);
          update(old, part);
        }
      });
    });
    source.addEventListener("end", function () {
      ended = true;
      disconnect();
      say("ended");
    });
    source.addEventListener("error", function () {
      say(source && source.readyState === 2 ? "not live: reload the page" : "connecting again");
    });
  }

  function disconnect() {
    if (source) source.close();
    source = null;
  }

  document.addEventListener("visibilitychange", function () {
    if (document.hidden) { disconnect(); say("paused"); } else connect();
  });
  window.addEventListener("pagehide", disconnect);
  connect();
})();
