// panva's oidc-provider with everything that deputize uses switched on, and nothing of deputize in it.
//
//   node server.mjs CONFIG.json
//
// CONFIG.json: {port, tls: {key, cert}, clients, people, apis}. Port 0 is any free port. When it listens, it prints one line
// {"issuer": …}; when its standard input ends, it ends.
//
// - `people`: {login: {name, patience}}; any password signs in; `patience` is the lifetime of a CIBA request in seconds.
// - `apis`: {resource indicator: [scopes]}.
//
// Pages: the library's own (`devInteractions` and the device flow's defaults). The authentication device of CIBA is
// `/phone/LOGIN`: GET lists what waits for that person, POST decides it.

import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { json } from 'node:stream/consumers';

import * as jose from 'jose';
import { Provider, errors } from 'oidc-provider';

const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';
const AGENT = 'urn:deputize:agent'; // the resource of a sign-in that names none: the client itself
const LIFETIME = 300; // seconds that a token for an API lives at most
const AGENT_LIFETIME = 60; // and one that the agent exchanges

const config = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const everyScope = [...new Set(Object.values(config.apis).flat())].join(' ');

async function signingKey(alg) {
  const { privateKey } = await jose.generateKeyPair(alg, { extractable: true });
  const jwk = await jose.exportJWK(privateKey);
  return { ...jwk, alg, use: 'sig', kid: await jose.calculateJwkThumbprint(jwk) };
}

// ID tokens are signed with RS256, the library's default, and access tokens with ES256.
const keys = [await signingKey('RS256'), await signingKey('ES256')];

function resourceServer(ctx, resource, client) {
  const rfc9068 = { accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } } };
  if (resource === AGENT) {
    return { ...rfc9068, accessTokenTTL: AGENT_LIFETIME, scope: everyScope, audience: client.clientId };
  }
  if (!Object.hasOwn(config.apis, resource)) {
    throw new errors.InvalidTarget();
  }
  return { ...rfc9068, accessTokenTTL: LIFETIME, scope: config.apis[resource].join(' ') };
}

// Whose hands a token is made for: a sign-in's token says who may act (RFC 8693 §4.4), a token for an API who does (§4.1).
function actors(ctx, token) {
  if (token.aud === token.clientId) {
    return { may_act: { sub: token.clientId } };
  }
  return token.gty === 'ciba' || token.gty === 'token_exchange' ? { act: { sub: token.clientId } } : undefined;
}

const phones = new Map();

const configuration = {
  clients: config.clients,
  jwks: { keys },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  clockTolerance: 1,
  scopes: ['openid', 'offline_access', 'profile'],
  claims: { openid: ['sub'], profile: ['name'] },
  pkce: { required: () => true },
  rotateRefreshToken: true,
  extraTokenClaims: actors,
  async findAccount(ctx, login) {
    if (!Object.hasOwn(config.people, login)) {
      return undefined;
    }
    return { accountId: login, claims: () => ({ sub: login, name: config.people[login].name }) };
  },
  ttl: {
    BackchannelAuthenticationRequest: (ctx, request) => (
      config.people[request.accountId].patience ?? Math.min(600, Number(ctx.oidc.params.requested_expiry ?? 600))
    ),
  },
  features: {
    clientCredentials: { enabled: true },
    deviceFlow: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: (ctx, client, oneOf) => oneOf ?? AGENT,
      useGrantedResource: () => true,
      getResourceServerInfo: resourceServer,
    },
    richAuthorizationRequests: {
      enabled: true,
      types: {
        stock_order: {
          validate(ctx, detail) {
            if (typeof detail.digest !== 'string' || typeof detail.arguments !== 'object') {
              throw new errors.InvalidAuthorizationDetails('a stock_order has a digest and arguments');
            }
          },
        },
      },
      authorizationDetailsForGrantSource: (ctx, source) => source.rar,
      authorizationDetailsForAccessToken: (ctx, token, source) => source.rar,
      authorizationDetailsForIntrospection: (ctx, token) => token.rar,
    },
    ciba: {
      enabled: true,
      deliveryModes: ['poll', 'ping'],
      validateRequestContext() {},
      verifyUserCode() {},
      processLoginHint(ctx, hint) {
        const { format, iss, sub } = JSON.parse(hint); // RFC 9493 §3.2.1
        return format === 'iss_sub' && iss === ctx.oidc.issuer ? sub : undefined;
      },
      triggerAuthenticationDevice(ctx, request) {
        phones.set(request.jti, request);
      },
    },
  },
  // Pings go to loopback here, which the library's own guard refuses: `dispatcher` is that guard.
  fetch: (url, { dispatcher, ...options }) => fetch(url, options),
};

// Token exchange, which the library has not. RFC 8693 §2; the authenticated client is the actor.
function tokenExchange(provider) {
  const trusted = jose.createLocalJWKSet({ keys: keys.map(({ d, p, q, dp, dq, qi, ...published }) => published) });

  provider.registerGrantType(EXCHANGE, async (ctx) => {
    const { client, params } = ctx.oidc;
    if (params.subject_token_type !== ACCESS_TOKEN || (params.requested_token_type ?? ACCESS_TOKEN) !== ACCESS_TOKEN) {
      throw new errors.InvalidRequest('only access tokens are exchanged');
    }
    let subject;
    try {
      ({ payload: subject } = await jose.jwtVerify(params.subject_token, trusted, {
        issuer: provider.issuer, audience: client.clientId, typ: 'at+jwt', requiredClaims: ['exp', 'sub'],
      }));
    } catch (cause) {
      throw new errors.InvalidRequest('subject_token is not acceptable', undefined, { cause });
    }
    if (subject.may_act?.sub !== client.clientId) {
      throw new errors.InvalidRequest('this client may not act for the subject');
    }
    const info = resourceServer(ctx, params.resource, client);
    const held = new Set(subject.scope?.split(' '));
    const asked = (params.scope ?? info.scope).split(' ');
    for (const scope of asked) {
      if (!held.has(scope)) {
        throw new errors.InvalidScope('the subject has not granted this scope', scope);
      }
    }
    const token = new provider.AccessToken({
      accountId: subject.sub,
      client,
      expiresIn: Math.min(LIFETIME, subject.exp - Math.floor(Date.now() / 1000)),
      gty: 'token_exchange',
    });
    token.resourceServer = new provider.ResourceServer(params.resource, info);
    const known = new Set(info.scope.split(' '));
    token.scope = asked.filter((scope) => known.has(scope)).join(' '); // like the library: the others are dropped
    ctx.body = {
      access_token: await token.save(),
      issued_token_type: ACCESS_TOKEN,
      token_type: 'Bearer',
      expires_in: token.expiration,
      scope: token.scope,
    };
  }, ['subject_token', 'subject_token_type', 'requested_token_type', 'resource', 'scope']);
}

// The authentication device: what waits for a person, and their decision.
async function phone(provider, login, req, res) {
  if (req.method === 'GET') {
    const waiting = [...phones.values()].filter((request) => request.accountId === login);
    const shown = waiting.map(({ jti, scope, resource, params }) => ({
      id: createHash('sha256').update(jti).digest('hex'), // the auth_req_id is the client's secret
      client_id: params.client_id,
      scope,
      resource,
      binding_message: params.binding_message,
      authorization_details: JSON.parse(params.authorization_details ?? '[]'),
    }));
    res.setHeader('content-type', 'application/json').end(JSON.stringify(shown));
    return;
  }
  const decision = await json(req);
  const [request] = [...phones.values()].filter(({ jti, accountId }) => (
    accountId === login && createHash('sha256').update(jti).digest('hex') === decision.id
  ));
  phones.delete(request.jti);
  if (decision.approve) {
    const rar = decision.authorization_details ?? JSON.parse(request.params.authorization_details ?? '[]');
    const grant = new provider.Grant({ accountId: login, clientId: request.clientId });
    grant.addOIDCScope(request.scope);
    grant.addResourceScope(request.resource, request.scope);
    rar.forEach((detail) => grant.addRar(detail));
    const how = { acr: 'urn:phone', amr: ['pop'], authTime: Math.floor(Date.now() / 1000), rar };
    await provider.backchannelResult(request, await grant.save(), how);
  } else {
    await provider.backchannelResult(request, new errors.AccessDenied());
  }
  res.writeHead(204).end();
}

const server = createServer({ key: readFileSync(config.tls.key), cert: readFileSync(config.tls.cert) });
await once(server.listen(config.port, '127.0.0.1'), 'listening');
const provider = new Provider(`https://127.0.0.1:${server.address().port}`, configuration);
tokenExchange(provider);
provider.on('server_error', (ctx, error) => console.error('server_error', error));

const pages = provider.callback();
server.on('request', (req, res) => {
  const [, login] = req.url.match(/^\/phone\/(\w+)$/) ?? [];
  if (login === undefined) {
    pages(req, res);
  } else {
    phone(provider, login, req, res).catch((error) => {
      console.error('server_error', error);
      res.writeHead(500).end();
    });
  }
});
process.stdin.on('end', () => process.exit()).resume();
console.log(JSON.stringify({ issuer: provider.issuer }));
