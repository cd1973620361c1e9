// Keeps the page, so that it opens without a network. pneumo-web puts three lines in front: FILES (path -> SHA-256,
// index.html last), VERSION (the folder of all others) and POLICY (the page's content security policy).
//
// How an update comes. The files of a version lie in a folder of its name, and only its index.html names them: no page has
// files of two versions. A new version is kept whole beside the old one; its index.html comes last and takes the place of
// the other, so that the next visit, a reload too, has the new one. Any worker can answer for all that is kept. So the new
// worker can wait until no page is open any more, and it has to: where one takes over from another at once (skipWaiting),
// Chromium stops the old one with requests of pages that it never answers then, and such a page loads for ever.

const CACHE = `pneumo ${registration.scope}`;
const SHA256 = "X-SHA-256";
const HEADERS = {
  "Content-Security-Policy": POLICY,
  // Threads need the page to be isolated, which a plain file server does not say: from the second visit on we do.
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "X-Content-Type-Options": "nosniff",
};

addEventListener("install", (event) => event.waitUntil(install()));
addEventListener("activate", (event) => event.waitUntil(clean()));
addEventListener("fetch", (event) => {
  const { origin, pathname, href } = new URL(event.request.url);
  if (event.request.method !== "GET" || !href.startsWith(registration.scope)) return;
  const path = (origin + pathname).slice(registration.scope.length) || "index.html";
  if (path === "index.html" || /^[0-9a-f]{16}\//.test(path)) event.respondWith(answer(event.request, path));
});

async function answer(request, path) {
  const kept = await caches.open(CACHE).then((cache) => cache.match(path)).catch(() => null);
  return kept ?? fetch(request);
}

/** Keeps all files, each checked against its hash, or none. What has not changed is not fetched again. */
async function install() {
  const put = [];
  let cache = null;
  try {
    cache = await caches.open(CACHE);
    const before = new Map(); // SHA-256 -> where it lies
    for (const request of await cache.keys()) before.set((await cache.match(request))?.headers.get(SHA256), request);
    for (const [path, sha256] of Object.entries(FILES)) {
      const kept = before.has(sha256) ? await cache.match(before.get(sha256)) : null;
      const { body, type } = (await checked(kept, sha256)) ?? (await fetched(path, sha256));
      if (!(await cache.match(path))) put.push(path);
      const headers = { "Content-Type": type, [SHA256]: sha256, ...(/\.(html|js)$/.test(path) ? HEADERS : {}) };
      await cache.put(path, new Response(body, { headers }));
    }
  } catch (error) {
    for (const path of put) await cache.delete(path);
    for (const page of await clients.matchAll({ includeUncontrolled: true })) page.postMessage(error.name);
    throw error;
  }
}

async function fetched(path, sha256) {
  // What the browser itself has kept is enough where the server knows of nothing newer, unless it is not the file.
  for (const cache of ["no-cache", "reload"]) {
    const found = await checked(await fetch(path, { cache }), sha256);
    if (found) return found;
  }
  throw new Error(path);
}

/** Body and type of an answer that is the file with that hash; null otherwise. */
async function checked(answer, sha256) {
  if (!answer?.ok) return null;
  const body = await answer.arrayBuffer();
  if (hex(await crypto.subtle.digest("SHA-256", body)) !== sha256) return null;
  return { body, type: answer.headers.get("Content-Type") ?? "" };
}

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** Removes older versions: a worker is not activated before all pages of the worker before it are closed. */
async function clean() {
  const cache = await caches.open(CACHE);
  for (const request of await cache.keys()) {
    const path = request.url.slice(registration.scope.length);
    if (path !== "index.html" && !path.startsWith(`${VERSION}/`)) await cache.delete(request);
  }
}
