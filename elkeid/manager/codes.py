"""The ``code`` of every answer of the Manager's API, and its ``msg``.

Source: docs/protocol.md, "Manager API", "Codes". The spelling of 9 and 13 is what clients know.
"""

SUCCESS = 0
AUTH_FAILED = 1
DUPLICATE = 2
DATABASE_ERROR = 3
PARAM_INVALID = 5
BUSY = 7
UNKNOWN_ERROR = 10
REMOTE_FAILED = 12
EXCEED_LIMIT = 15
OTP_REQUIRED = 17
PASSWORD_TOO_OLD = 18
CAPTCHA_NEEDED = 19
ADDRESS_NOT_ALLOWED = 20
USER_LOCKED = 21

MESSAGES = {
    SUCCESS: "success",
    AUTH_FAILED: "auth failed",
    DUPLICATE: "duplicate field",
    DATABASE_ERROR: "db operate error",
    4: "redis operate error",
    PARAM_INVALID: "param invalid",
    6: "db no row affected",
    BUSY: "resource temporarily unavailable",
    8: "ID MAX LEN IS 1-15",
    9: "ID ONLY SYUUPRT 'A-Z/a-z/0-9/-/_'",
    UNKNOWN_ERROR: "unknown error",
    11: "get result timeout",
    REMOTE_FAILED: "all remote instance failed",
    13: "PROJECT ID REPECT",
    14: "SOME FIELD IS NUL",
    EXCEED_LIMIT: "",
    16: "sso error",
    OTP_REQUIRED: "otp required",
    PASSWORD_TOO_OLD: "password has not been updated for a long time",
    CAPTCHA_NEEDED: "need captcha check",
    ADDRESS_NOT_ALLOWED: "login ip not in whitelist",
    USER_LOCKED: "user locked",
}
