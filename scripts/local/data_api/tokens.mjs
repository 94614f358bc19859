// Who is asking: session tokens of Clerk, and the gateway's own tokens for the two API keys.
import { createRemoteJWKSet, decodeProtectedHeader, jwtVerify, SignJWT } from "jose";

// A person's token can only make them a person: service_role comes from the secret key alone, through the gateway.
const ROLES_OF_PEOPLE = ["anon", "authenticated"];

/**
 * Hono middleware: refuses every bearer token it cannot verify, as PostgREST does, and hands Lite the same claims
 * signed with the secret that Lite knows. RS256 is Clerk's, checked by its JWKS and exact issuer; HS256 the gateway's.
 */
export function tokenVerification({ secret, issuer }) {
  const key = new TextEncoder().encode(secret);
  const jwks = createRemoteJWKSet(new URL(`${issuer}/.well-known/jwks.json`), { timeoutDuration: 3000 });

  const claimsOf = async (token) => {
    if (decodeProtectedHeader(token).alg === "HS256") return (await jwtVerify(token, key, { algorithms: ["HS256"] })).payload;
    return (await jwtVerify(token, jwks, { issuer, algorithms: ["RS256"], requiredClaims: ["exp", "sub"] })).payload;
  };
  const signed = (claims) => new SignJWT(claims).setProtectedHeader({ alg: "HS256" }).sign(key);

  return async (context, next) => {
    const header = context.req.header("authorization");
    if (header === undefined) return next();
    const token = /^Bearer +(\S+)$/i.exec(header)?.[1] ?? "";
    const parts = token.split(".").length;
    if (parts !== 3) return refused(context, "PGRST301", `Expected 3 parts in JWT; got ${parts}`);
    let claims;
    try {
      claims = await claimsOf(token);
    } catch (error) {
      if (error.code === "ERR_JWT_EXPIRED") return refused(context, "PGRST303", "JWT expired");
      return refused(context, "PGRST301", "No suitable key or wrong key type", "None of the keys was able to decode the JWT");
    }
    if (claims.iss === issuer && !ROLES_OF_PEOPLE.includes(claims.role ?? "anon")) {
      return context.json(body("42501", `permission denied to set role "${claims.role}"`), 403);
    }
    const headers = new Headers(context.req.raw.headers);
    headers.set("authorization", `Bearer ${await signed(claims)}`);
    context.req.raw = new Request(context.req.raw, { headers });
    return next();
  };
}

const body = (code, message, details = null) => ({ code, details, hint: null, message });

const refused = (context, code, message, details) =>
  context.json(body(code, message, details), 401, { "www-authenticate": `Bearer error="invalid_token", error_description="${message}"` });
