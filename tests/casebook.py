"""The casebook: what must hold when somebody tries to break it, and where that is proved.

A test names the ids that it proves: ``@pytest.mark.case("E1")``. ``tests/test_casebook.py`` checks both ways: an entry that is
not ``planned`` has a test, and a cited id exists and is not planned any more.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CASES", "Case"]


@dataclass(frozen=True, slots=True)
class Case:
    """One entry.

    Args:
        source: the part of the casebook, with the specifications that it comes from.
        behaviour: what must hold.
        planned: what it waits for, if nothing of it is built yet.
    """

    id: str
    source: str
    behaviour: str
    planned: str = ""


_OAUTH = "OAuth and OpenID Connect (RFC 9700, 9207, 8414, 7636)"
_APPROVALS = "Approvals: CIBA, device flow, RAR"
_EXCHANGE = "Token exchange, ID-JAG, registration"
_MCP = "MCP (authorization 2026-07-28)"
_LANGGRAPH = "LangGraph"
_VAULT = "Vault"
_RUNNING = "Policy, audit, running it"

CASES = (
    Case(
        "A1",
        _OAUTH,
        "Callback with `iss` missing (when advertised) or wrong: no token request is made; same for error responses.",
    ),
    Case(
        "A2",
        _OAUTH,
        "`state` missing, replayed, or from another browser: 400, nothing stored.",
        planned="the token vault",
    ),
    Case(
        "A3",
        _OAUTH,
        "Authorization server without S256: refuse; issuer: `plain`, no challenge, or a verifier without "
        "challenge: refuse, for confidential clients too.",
    ),
    Case(
        "A4",
        _OAUTH,
        "Code used twice: `invalid_grant`, and the tokens it had produced are revoked.",
    ),
    Case(
        "A5",
        _OAUTH,
        "Redirect URI differing in case, slash, query, userinfo or host suffix: refused (loopback port excepted).",
    ),
    Case(
        "A6",
        _OAUTH,
        "`return_to` as `//evil`, `\\evil`, absolute, or with CR/LF: local paths only.",
    ),
    Case(
        "A7",
        _OAUTH,
        "Rotated refresh token used again: the whole family is dead.",
    ),
    Case(
        "A8",
        _OAUTH,
        "Wrong `aud` or `iss`; an ID token where an access token belongs; a refresh token as subject "
        "where not allowed: refused.",
    ),
    Case(
        "A9",
        _OAUTH,
        "`alg: none`, a public key used as HMAC key, unknown `crit`, algorithm not listed: refused. "
        "Wycheproof JWS/JWE/JWK and AES-GCM vectors run.",
    ),
    Case(
        "A10",
        _OAUTH,
        "`kid` as path / SQL / URL, `jku`, `x5u`: ignored. 1,000 unknown kids: at most one JWKS fetch per cool-down.",
    ),
    Case(
        "A11",
        _OAUTH,
        "New signing key accepted; withdrawn key refused after its lifetime; JWKS down: last good keys "
        "until they expire, then refuse.",
    ),
    Case(
        "A12",
        _OAUTH,
        "Clock skew over 60 s: refused; under: accepted.",
    ),
    Case(
        "A13",
        _OAUTH,
        "Discovery document whose `issuer` differs from the URL asked: refused.",
    ),
    Case(
        "A14",
        _OAUTH,
        "Duplicate or oversized parameters: `invalid_request`, never silently dropped.",
    ),
    Case(
        "A15",
        _OAUTH,
        "Client assertion replayed (`jti`), for another audience, expired: refused.",
    ),
    Case(
        "A16",
        _OAUTH,
        "Session id changes at login.",
    ),
    Case(
        "A17",
        _OAUTH,
        "Someone else completes my connect or login link: refused.",
    ),
    Case(
        "A18",
        _OAUTH,
        "A login that was started by someone who is not signed in finishes only in the browser that "
        "started it. Device login is for the terminal's own sign-in and the embedded world: hand-typed "
        "code, no complete link, and a confirm page that names device, place and time.",
    ),
    Case(
        "A19",
        _OAUTH,
        "A client assertion's `aud` is the issuer, never an advertised endpoint (lying metadata would collect it).",
    ),
    Case(
        "B1",
        _APPROVALS,
        "`auth_req_id` guessed or belonging to another client: `invalid_grant`; at least 128 bits.",
    ),
    Case(
        "B2",
        _APPROVALS,
        "Redeemed twice: refused, and the first token revoked.",
    ),
    Case(
        "B3",
        _APPROVALS,
        "Polling faster than `interval`: `slow_down`, and the client adds 5 s for good.",
    ),
    Case(
        "B4",
        _APPROVALS,
        "Approved for call A, used for call B; any one argument changed by one byte; any field of the "
        "binding changed: refused.",
    ),
    Case(
        "B5",
        _APPROVALS,
        "Unknown or injected parameters (`sub` in a hint, quotes in a user id): never merged.",
    ),
    Case(
        "B6",
        _APPROVALS,
        "Public client asks for CIBA: refused.",
    ),
    Case(
        "B7",
        _APPROVALS,
        "User disabled between request and redemption: refused.",
        planned="approvals from any identity provider",
    ),
    Case(
        "B8",
        _APPROVALS,
        "Approver is not the one asked; where two people must approve, one person twice, or the requester: refused.",
        planned="approvals from any identity provider",
    ),
    Case(
        "B9",
        _APPROVALS,
        "Late approval: expired. Approve and deny racing 1,000 times: one terminal state each. Approving "
        "twice: one effect.",
    ),
    Case(
        "B10",
        _APPROVALS,
        "Text with ANSI, CR/LF, bidirectional or zero-width characters, HTML, overlong: shown escaped or "
        "refused; the page shows the arguments the server holds.",
    ),
    Case(
        "B11",
        _APPROVALS,
        "More than N pending per user: refused with a message; a cool-down after a denial; resuming never "
        "sends a second push.",
    ),
    Case(
        "B12",
        _APPROVALS,
        "GET, prefetch, cross-origin POST (port included) or a frame never approves.",
    ),
    Case(
        "B13",
        _APPROVALS,
        "Forged or mismatched ping: 401, no state change; never a redirect followed.",
    ),
    Case(
        "B14",
        _APPROVALS,
        "User codes: brute force locks out; a complete link never approves by itself.",
    ),
    Case(
        "B15",
        _APPROVALS,
        "A transient 500, 429, timeout or reset while polling: the request survives and polling goes on.",
    ),
    Case(
        "B16",
        _APPROVALS,
        "The authorization server returns fewer scopes or other `authorization_details` than asked: refused.",
    ),
    Case(
        "B17",
        _APPROVALS,
        "A token obtained for an approved call carries the request id and digest in its seal, is never "
        "cached, and opens for that request only: a token from a small order never serves a large one, "
        "nor approval A's token call B.",
    ),
    Case(
        "B18",
        _APPROVALS,
        "The authorization server and the resource server hold the limit themselves: above it a token "
        "without matching details is refused, whatever the agent asked for, and its details count once. "
        "For APIs of others the docs say plainly: approval binds the agent, not the API.",
    ),
    Case(
        "B19",
        _APPROVALS,
        "An approver's token is evidence only; the call's token is the requester's (a manager's approval "
        "never runs the order as the manager).",
        planned="approvals from any identity provider",
    ),
    Case(
        "B20",
        _APPROVALS,
        'A row that says "approved" is not enough: the decision is a signed artefact (digest, approver, '
        "`acr`, time; for CIBA the returned token) that `tool_call` verifies. Rows edited in the database "
        "(`state`, standing approvals, a claim deleted or reset): refused, and the downstream idempotency "
        "key still holds.",
        planned="approvals from any identity provider",
    ),
    Case(
        "B21",
        _APPROVALS,
        "`when(…)` sees validated arguments and returns a strict bool; an error, a non-finite or negative "
        "number where none belongs asks for approval. Decimals and integers beyond 2⁵³ are digested as "
        "strings.",
    ),
    Case(
        "B22",
        _APPROVALS,
        "Equal pending calls of one thread coalesce into one request with one effect; the second call is "
        'answered by reference and never runs; asking for two effects shows "2 x".',
    ),
    Case(
        "B23",
        _APPROVALS,
        "Standing approvals are made only on the page after fresh sign-in, never satisfy a manager's or "
        "two people's approval, and their counter is reserved in the claim.",
        planned="approvals from any identity provider",
    ),
    Case(
        "B24",
        _APPROVALS,
        "An edited call voids every earlier approval of it.",
        planned="approvals from any identity provider",
    ),
    Case(
        "B25",
        _APPROVALS,
        "The terminal never decides with the stored session: it opens the page, which asks for a fresh sign-in.",
        planned="approvals from any identity provider",
    ),
    Case(
        "B26",
        _APPROVALS,
        "Guarded tools resolve first and put the bounds into the approved arguments (`max_price`, "
        "recipient id): what was shown bounds what runs.",
    ),
    Case(
        "B27",
        _APPROVALS,
        "Only fields that the tool declares as shown leave for a third party's server; the rest travels "
        "as a salted digest; arguments in the ledger are sealed.",
        planned="approvals from any identity provider",
    ),
    Case(
        "C1",
        _EXCHANGE,
        "Actor not allowed by `may_act`: refused. The `act` chain is never rewritten; only the outermost "
        "actor decides.",
    ),
    Case(
        "C2",
        _EXCHANGE,
        "Audience not allowed: `invalid_target`; scope wider than the subject's: `invalid_scope`.",
    ),
    Case(
        "C3",
        _EXCHANGE,
        "The new token never outlives the subject token.",
    ),
    Case(
        "C4",
        _EXCHANGE,
        "Missing or oversized subject token never turns into another grant.",
    ),
    Case(
        "C5",
        _EXCHANGE,
        "Disabled user, client or agent: refused at once, at every grant.",
    ),
    Case(
        "C6",
        _EXCHANGE,
        "ID-JAG with wrong `typ`, several audiences, another client's `client_id`, replayed, or self- issued: refused.",
        planned="cross-app access",
    ),
    Case(
        "C7",
        _EXCHANGE,
        "`jwks_uri`, token, registration and metadata endpoints, client metadata document or logo on a "
        "private, link-local, mapped, decimal or rebound address, by redirect, or oversized: no "
        "connection to it is made (proved with a listener).",
        planned="client registration and MCP",
    ),
    Case(
        "C8",
        _EXCHANGE,
        "Registration asking for scopes it may not have, `javascript:` or non-loopback `http:` redirects: refused.",
        planned="client registration and MCP",
    ),
    Case(
        "C9",
        _EXCHANGE,
        "An `authorization_endpoint` that is not https (or loopback): never opened or shown.",
    ),
    Case(
        "C10",
        _EXCHANGE,
        "The inbound subject token has one home: sealed, in a row keyed by the run, deleted at its end.",
    ),
    Case(
        "C11",
        _EXCHANGE,
        "After a wake-up only the CIBA token or an offline grant with recorded consent (agent, scopes, "
        "wording version, end) is used; else login.",
        planned="approvals from any identity provider",
    ),
    Case(
        "C12",
        _EXCHANGE,
        "`may_act` absent: refused. It is issued per agent at consent and not copied onward. The subject "
        "token's audience is the exchanging client.",
    ),
    Case(
        "C13",
        _EXCHANGE,
        "Every discovered URL goes through one guarded transport that ignores proxy settings; development "
        "opens the embedded world's exact host and port, not all of loopback; SDKs that send by "
        "themselves (MCP, notifications, OpenFGA) are held to it.",
    ),
    Case(
        "D1",
        _MCP,
        "Token for another audience: 401 with `resource_metadata`; the audience check cannot be left off.",
        planned="MCP",
    ),
    Case(
        "D2",
        _MCP,
        "The inbound token never appears upstream.",
        planned="MCP",
    ),
    Case(
        "D3",
        _MCP,
        "Session or handle presented by another principal: refused.",
        planned="MCP",
    ),
    Case(
        "D4",
        _MCP,
        "Metadata `resource` differs from the URL: abort. No `code_challenge_methods_supported`: abort.",
        planned="MCP",
    ),
    Case(
        "D5",
        _MCP,
        "Server starts naming another authorization server: credentials of the first are not sent there.",
        planned="MCP",
    ),
    Case(
        "D6",
        _MCP,
        "Two servers never share a token; two users never share a token.",
        planned="MCP",
    ),
    Case(
        "D7",
        _MCP,
        "Foreign `Host` or `Origin`: 403.",
        planned="MCP",
    ),
    Case(
        "D8",
        _MCP,
        "Tool schema changed since it was approved: asked again.",
        planned="MCP",
    ),
    Case(
        "D9",
        _MCP,
        "403 `insufficient_scope`: union of scopes, limited retries. 503 from the token endpoint: stored tokens stay.",
        planned="MCP",
    ),
    Case(
        "D10",
        _MCP,
        "Adding a server needs the person's approval on a page that shows the host; it is added for that person only.",
        planned="MCP",
    ),
    Case(
        "D11",
        _MCP,
        "ID-JAG is requested only for pinned pairs of resource and authorization server.",
        planned="MCP",
    ),
    Case(
        "E1",
        _LANGGRAPH,
        "Forged resume value, of any shape: ignored.",
    ),
    Case(
        "E2",
        _LANGGRAPH,
        "Client edits thread state (user, session, tool call, decision): refused, and harmless if it got through.",
    ),
    Case(
        "E3",
        _LANGGRAPH,
        "`Command(goto=…/update=…)` from a client: refused, and harmless if it got through.",
    ),
    Case(
        "E4",
        _LANGGRAPH,
        "Run again from an old checkpoint, before or after approval: at most one effect.",
    ),
    Case(
        "E5",
        _LANGGRAPH,
        "Thread copied: at most one effect.",
    ),
    Case(
        "E6",
        _LANGGRAPH,
        "`kill -9` right after the effect, then restart and resume: at most one effect; the outcome reads "
        "`unknown` or `done`.",
    ),
    Case(
        "E7",
        _LANGGRAPH,
        "Parallel resumes, every multitask strategy: one effect.",
    ),
    Case(
        "E8",
        _LANGGRAPH,
        "Studio header without credentials from a foreign origin: cannot read a user's thread or act for a user.",
    ),
    Case(
        "E9",
        _LANGGRAPH,
        "Foreign `Host` header: refused.",
    ),
    Case(
        "E10",
        _LANGGRAPH,
        "Resource with no handler (store, assistants, crons…): denied by default; users are separated.",
    ),
    Case(
        "E11",
        _LANGGRAPH,
        "Canary: after whole conversations with planted token values, no plain token is found in "
        "checkpoints, thread state, run records, every stream mode, logs, exceptions, audit, model "
        "messages, traces, or any file on disk but the sealed ones.",
    ),
    Case(
        "E12",
        _LANGGRAPH,
        "Another user reads, resumes, copies or lists my thread: 404.",
    ),
    Case(
        "E13",
        _LANGGRAPH,
        "A second user, or nobody, on the same thread: never served with the first one's tokens.",
    ),
    Case(
        "E14",
        _LANGGRAPH,
        "Tampered checkpoint row: nothing is executed on load (strict msgpack, and `pickle_fallback` off; "
        "the dev server's own files are pickle: folder 0700, and the docs say so).",
    ),
    Case(
        "E15",
        _LANGGRAPH,
        "Model asks to pass a token, another user's id, or an unlisted host: the token parameter and the "
        "user come from the server; refused.",
    ),
    Case(
        "E16",
        _LANGGRAPH,
        "Two guarded calls in one turn, one waiting: the finished one is not run again; both kinds of "
        "wait at once work.",
    ),
    Case(
        "E17",
        _LANGGRAPH,
        "A new user message while a request is pending: the thread stays usable, no dangling tool call, "
        "the request is cancelled or kept, visibly.",
    ),
    Case(
        "E18",
        _LANGGRAPH,
        "Restart of the process while waiting (login, connection, approval): goes on where it was.",
    ),
    Case(
        "E19",
        _LANGGRAPH,
        "Two anonymous visitors are two owners (a visitor id minted by the server); login moves the "
        "owner. StudioUser exists in the embedded world only. Only the waker, with a single-use nonce, "
        "runs without a user.",
    ),
    Case(
        "E20",
        _LANGGRAPH,
        "Another graph run on my thread (`watcher` on an `assistant` thread): refused; seals name the "
        "graph. The watcher's input is a handle; its row says whose it is.",
    ),
    Case(
        "E21",
        _LANGGRAPH,
        "Input carries new human messages only: no other channel, role, id or removal; `supersteps` on "
        "thread creation refused.",
    ),
    Case(
        "E22",
        _LANGGRAPH,
        "`configurable.user_id` and its like are ignored; `metadata.owner` cannot be set or changed by a client.",
    ),
    Case(
        "E23",
        _LANGGRAPH,
        "A web page of a foreign origin (another port too): 403 on every route, `text/plain` bodies "
        "included; webhooks off.",
    ),
    Case(
        "E24",
        _LANGGRAPH,
        "Every tool that is not marked read-only claims a ledger row and an idempotency key before its "
        "effect, approval or not: a re-queued run has no second effect.",
    ),
    Case(
        "E25",
        _LANGGRAPH,
        "A tool, API or exception that echoes the token: every opened value is replaced in results, "
        "artefacts, errors and streamed writes.",
    ),
    Case(
        "E26",
        _LANGGRAPH,
        "After logout, an old session or token from history opens nothing: the session row and the stop "
        "list are read at every `tool_call`. Unknown or retired key: exchange again, or login.",
        planned="the LangGraph server as a place of control",
    ),
    Case(
        "E27",
        _LANGGRAPH,
        "Token parameters are no tool arguments: the gate binds them outside the call's arguments, so no "
        "validation error, trace or message can print them; called outside a gate the tool refuses.",
    ),
    Case(
        "E28",
        _LANGGRAPH,
        "An access token is sent to its own audience's hosts only.",
    ),
    Case(
        "F1",
        _VAULT,
        "Two rows' ciphertexts swapped (user, connection, field, generation), or a byte flipped: that row "
        "refuses, the others work.",
    ),
    Case(
        "F2",
        _VAULT,
        "Database file stolen (with `-wal`, temporary files, backups): no token in clear.",
    ),
    Case(
        "F3",
        _VAULT,
        "Key missing or wrong: a clear refusal; never re-initialised, never overwritten.",
    ),
    Case(
        "F4",
        _VAULT,
        "Key rotation killed at any point: resumes; both keys readable until done; then the old one is not needed.",
        planned="the token vault",
    ),
    Case(
        "F5",
        _VAULT,
        "N processes x one expiring grant: one redemption at the provider, everyone gets the new token.",
        planned="the token vault",
    ),
    Case(
        "F6",
        _VAULT,
        "Holder paused past its lease: cannot commit; a loser never deletes or overwrites the winner's token.",
        planned="the token vault",
    ),
    Case(
        "F7",
        _VAULT,
        "`kill -9` before sending, in flight, after the answer, before and after the commit: recovered "
        "where the provider allows, else `reconnect` with the cause; the file is intact.",
        planned="the token vault",
    ),
    Case(
        "F8",
        _VAULT,
        "`invalid_grant`: the row is re-read first; then `reconnect`, never a loop. 429/5xx/timeouts: "
        "back off, the token stays.",
        planned="the token vault",
    ),
    Case(
        "F9",
        _VAULT,
        "Answer without a refresh token: the stored one is kept. Answer without `expires_in` or `scope`: no loop.",
    ),
    Case(
        "F10",
        _VAULT,
        "Disk full at each write: the old value is intact and the error is clear.",
        planned="the token vault",
    ),
    Case(
        "F11",
        _VAULT,
        "Clock jumps a year either way: no refresh storm, no use of expired tokens.",
        planned="the token vault",
    ),
    Case(
        "F12",
        _VAULT,
        "Disconnect: revoked at the provider where it can be, wiped locally, a receipt that says which.",
        planned="the token vault",
    ),
    Case(
        "F13",
        _VAULT,
        "A connect link first signs in as the request's subject; the provider's account id is stored; "
        "reconnecting with another account is refused or becomes a second account, visibly.",
        planned="the token vault",
    ),
    Case(
        "F14",
        _VAULT,
        "With the vault in its own process, code run inside the agent process obtains no refresh token, "
        "no client key and no key-ring key.",
        planned="the token vault",
    ),
    Case(
        "G1",
        _RUNNING,
        "Policy engine error, timeout, unknown action, missing attribute, NaN: denied.",
        planned="governance",
    ),
    Case(
        "G2",
        _RUNNING,
        "Policy or relation changed between approval and execution: evaluated again, denied.",
        planned="governance",
    ),
    Case(
        "G3",
        _RUNNING,
        "Document without an id, same object with two relations, an id shared by two documents: never let "
        "through by accident.",
    ),
    Case(
        "G4",
        _RUNNING,
        "Audit row edited, deleted, reordered, or the tail cut: `audit verify` names the place. Audit not "
        "writable: the action does not happen.",
        planned="governance",
    ),
    Case(
        "G5",
        _RUNNING,
        "CR/LF/ANSI in anything logged or printed: escaped.",
    ),
    Case(
        "G6",
        _RUNNING,
        "A 100 MB body, JSON 10⁵ deep, slow clients, endless pending requests: bounded memory, clear errors.",
    ),
    Case(
        "G7",
        _RUNNING,
        "Embedded issuer on a public address, with a production setting, or behind proxy headers: does "
        "not start. Its tokens are refused by a production verifier.",
    ),
    Case(
        "G8",
        _RUNNING,
        "Kill switch: a stopped user, agent, connection or tool is refused within one second, in runs "
        "already going too.",
        planned="governance",
    ),
    Case(
        "G9",
        _RUNNING,
        "A stolen agent key alone gets nothing for users; per-agent caps and audiences at the "
        "authorization server; its revocation works within a second.",
        planned="governance",
    ),
    Case(
        "G10",
        _RUNNING,
        "Principal = (tenant, issuer, subject) everywhere: seals, rows, policy, audit, administrators. "
        "Two organizations on one deployment see nothing of each other.",
    ),
    Case(
        "G11",
        _RUNNING,
        "The audit's heads go to a sink that the administrator of the database cannot write; while there "
        "is none, a warning says so.",
        planned="governance",
    ),
    Case(
        "G12",
        _RUNNING,
        "Redaction, retention, policy changes and administrators' reads are records themselves.",
        planned="governance",
    ),
)
