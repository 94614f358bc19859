// Verifies the tokens of requests: Clerk's session tokens, and the gateway's own tokens for the two API keys.
// The rules are those of PostgREST: it checks the signature and the times, but not the issuer or the subject.
import { compactVerify, createRemoteJWKSet, decodeProtectedHeader } from "jose";
import { currentRequest } from "./request.mjs";

const LEEWAY_SECONDS = 30;

class TokenRefused extends Error {
  constructor(code, message, details = null) {
    super(message);
    this.body = { code, details, hint: null, message };
  }
}

/**
 * Hono middleware: refuses an invalid bearer token as PostgREST does, and adds the claims of a valid one to the request.
 * Clerk signs with RS256, verified by its JWKS; the gateway signs with HS256. A request without a token is anonymous.
 */
export function tokenVerification({ secret, issuer }) {
  const jwks = createRemoteJWKSet(new URL(`${issuer}/.well-known/jwks.json`), { timeoutDuration: 3000 });
  const keys = { HS256: new TextEncoder().encode(secret), RS256: jwks };

  return async (context, next) => {
    const token = /^bearer(?:\s+(.*))?$/i.exec(context.req.header("authorization") ?? "");
    try {
      const claims = token ? await verifyClaims(token[1] ?? "", keys) : {};
      currentRequest().claims = { ...claims, role: roleOf(claims) };
    } catch (error) {
      if (!(error instanceof TokenRefused)) throw error;
      const refusal = `Bearer error="invalid_token", error_description="${error.message}"`;
      return context.json(error.body, 401, { "www-authenticate": refusal });
    }
    // Lite would check the token again, with stricter rules.
    const headers = new Headers(context.req.raw.headers);
    headers.delete("authorization");
    context.req.raw = new Request(context.req.raw, { headers });
    return next();
  };
}

async function verifyClaims(token, keys) {
  if (token === "") throw new TokenRefused("PGRST301", "Empty JWT is sent in Authorization header");
  const parts = token.split(".").length;
  if (parts !== 3) throw new TokenRefused("PGRST301", `Expected 3 parts in JWT; got ${parts}`);
  const claims = parseClaims(await verifyPayload(token, keys));
  checkClaims(claims, Math.floor(Date.now() / 1000));
  return claims;
}

async function verifyPayload(token, keys) {
  const algorithm = algorithmOf(token);
  if (algorithm === "none") {
    const details = "JWT is unsecured but expected 'alg' was not 'none'";
    throw new TokenRefused("PGRST301", "Wrong or unsupported encoding algorithm", details);
  }
  try {
    if (!Object.hasOwn(keys, algorithm)) throw noSuitableKey("No suitable key was found to decode the JWT");
    return (await compactVerify(token, keys[algorithm], { algorithms: [algorithm] })).payload;
  } catch (error) {
    if (error instanceof TokenRefused) throw error;
    throw noSuitableKey(
      error.code === "ERR_JWS_SIGNATURE_VERIFICATION_FAILED"
        ? "None of the keys was able to decode the JWT"
        : "No suitable key was found to decode the JWT",
    );
  }
}

const noSuitableKey = (details) => new TokenRefused("PGRST301", "No suitable key or wrong key type", details);

function algorithmOf(token) {
  try {
    const { alg } = decodeProtectedHeader(token);
    if (typeof alg === "string") return alg;
  } catch {
    // Refused below, like a header without an algorithm.
  }
  throw new TokenRefused("PGRST301", "JWT cryptographic operation failed");
}

function parseClaims(payload) {
  try {
    const claims = JSON.parse(new TextDecoder().decode(payload));
    if (typeof claims === "object" && claims !== null && !Array.isArray(claims)) return claims;
  } catch {
    // Refused below, like JSON that is not an object.
  }
  throw new TokenRefused("PGRST303", "Parsing claims failed");
}

function checkClaims(claims, now) {
  const checkTime = (name, isRefused, message) => {
    const time = claims[name] ?? null;
    if (time === null) return;
    if (typeof time !== "number") throw new TokenRefused("PGRST303", `The JWT '${name}' claim must be a number`);
    if (isRefused(Number.isInteger(time) ? time : 0)) throw new TokenRefused("PGRST303", message);
  };
  checkTime("exp", (time) => time < now - LEEWAY_SECONDS, "JWT expired");
  checkTime("nbf", (time) => time > now + LEEWAY_SECONDS, "JWT not yet valid");
  checkTime("iat", (time) => time > now + LEEWAY_SECONDS, "JWT issued at future");
  const audience = [claims.aud ?? []].flat();
  if (!audience.every((each) => typeof each === "string")) {
    throw new TokenRefused("PGRST303", "The JWT 'aud' claim must be a string or an array of strings");
  }
}

// A role that is not a string is kept as its JSON text, which the database refuses as an unknown role.
function roleOf({ role }) {
  if (role === undefined) return "anon";
  return typeof role === "string" ? role : JSON.stringify(role);
}
