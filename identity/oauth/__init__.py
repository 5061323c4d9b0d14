"""OAuth and OpenID, one specification a module, without I/O.

Each exchange is a pair: ``…_request`` builds what is sent, ``process_…_response`` only validates what came back.

======================================  ==================================================
:mod:`identity.oauth.metadata`          RFC 8414, OpenID Connect Discovery 1.0
:mod:`identity.oauth.client`            RFC 7523 §2.2 (``private_key_jwt``)
:mod:`identity.oauth.pkce`              RFC 7636
:mod:`identity.oauth.authorization`     RFC 6749 §4.1, RFC 9207, RFC 8252
:mod:`identity.oauth.tokens`            RFC 6749 §5, §6; RFC 7009
:mod:`identity.oauth.device`            RFC 8628
:mod:`identity.oauth.ciba`              OpenID Connect CIBA Core 1.0
:mod:`identity.oauth.exchange`          RFC 8693, RFC 8707
:mod:`identity.oauth.rar`               RFC 9396
:mod:`identity.oauth.jwt`               RFC 7519, RFC 7517, RFC 9068, OpenID Connect Core §3.1.3.7
======================================  ==================================================
"""
