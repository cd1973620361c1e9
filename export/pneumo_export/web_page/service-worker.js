// Keeps the page, so that it opens without a network. pneumo-web puts three lines in front: FILES (name -> SHA-256),
// VERSION (of all of them) and POLICY (the page's content security policy).

const OURS = `pneumo ${registration.scope} `;
const HEADERS = {
  "Content-Security-Policy": POLICY,
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "X-Content-Type-Options": "nosniff",
};

addEventListener("install", (event) => event.waitUntil(install()));
addEventListener("activate", (event) => event.waitUntil(activate()));
addEventListener("fetch", (event) => {
  const { origin, pathname, href } = new URL(event.request.url);
  if (event.request.method !== "GET" || !href.startsWith(registration.scope)) return;
  const name = (origin + pathname).slice(registration.scope.length) || "index.html";
  if (Object.hasOwn(FILES, name)) event.respondWith(answer(event.request, name));
});

/** Fetches all files or none: model and page of two versions never meet. */
async function install() {
  try {
    const cache = await caches.open(OURS + VERSION);
    for (const [name, sha256] of Object.entries(FILES)) {
      const answer = await fetch(name, { cache: "no-cache" });
      if (!answer.ok) throw new Error(name);
      const body = await answer.arrayBuffer();
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", body));
      if ([...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("") !== sha256) throw new Error(name);
      await cache.put(name, new Response(body, { headers: { "Content-Type": answer.headers.get("Content-Type") ?? "" } }));
    }
    // Pages that are open have all that they need in memory: the next one that is opened is the new one.
    await skipWaiting();
  } catch (error) {
    await caches.delete(OURS + VERSION);
    for (const page of await clients.matchAll({ includeUncontrolled: true })) page.postMessage(error.name);
    throw error;
  }
}

async function activate() {
  for (const name of await caches.keys()) {
    if (name.startsWith(OURS) && name !== OURS + VERSION) await caches.delete(name);
  }
}

async function answer(request, name) {
  const kept = await (await caches.open(OURS + VERSION)).match(name);
  if (!kept) return fetch(request);
  if (!/\.(html|m?js)$/.test(name)) return kept;
  // Threads need the page to be isolated, which a plain file server does not say: from the second visit on we do.
  const headers = new Headers(kept.headers);
  for (const [header, value] of Object.entries(HEADERS)) headers.set(header, value);
  return new Response(kept.body, { headers });
}
