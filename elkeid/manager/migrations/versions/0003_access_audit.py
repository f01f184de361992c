"""What guards logins (second factors, failures, networks), and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _of_user(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["user_id"], ["user.id"], name=f"fk_{table}_user_id", ondelete="CASCADE"
    )


def upgrade() -> None:
    """Add columns with defaults, and tables; the release before runs on."""
    op.add_column("user", sa.Column("networks", sa.Text, nullable=False, server_default="[]"))
    op.add_column("user", sa.Column("otp_secret", sa.String(64)))
    op.add_column(
        "user",
        sa.Column(
            "otp_confirmed",
            sa.Boolean(create_constraint=False),
            nullable=False,
            server_default=sa.false(),
        ),
    )
    op.add_column("user", sa.Column("otp_step", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("token", sa.Column("peer", sa.String(64), nullable=False, server_default=""))
    op.create_table(
        "password_history",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("password", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_password_history"),
        _of_user("password_history"),
    )
    op.create_index("ix_password_history_user_id", "password_history", ["user_id"])
    op.create_table(
        "recovery_code",
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "hash", name="pk_recovery_code"),
        _of_user("recovery_code"),
    )
    op.create_table(
        "known_address",
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "address", name="pk_known_address"),
        _of_user("known_address"),
    )
    op.create_table(
        "login_failure",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_login_failure"),
    )
    op.create_index("ix_login_failure_subject", "login_failure", ["subject"])
    op.create_index("ix_login_failure_last_at", "login_failure", ["last_at"])
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("of", sa.BigInteger),
        sa.Column("username", sa.String(80), nullable=False),
        sa.Column("level", sa.Integer),
        sa.Column("peer", sa.String(64), nullable=False),
        sa.Column("method", sa.String(16), nullable=False),
        sa.Column("path", sa.String(512), nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("code", sa.Integer),
        sa.Column("objects", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("prev", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )
    op.create_index("ix_audit_at_ms", "audit", ["at_ms"])
    op.create_index("ix_audit_of", "audit", ["of"])
    op.create_index("ix_audit_username_seq", "audit", ["username", "seq"])
    op.create_index("ix_audit_path_seq", "audit", ["path", "seq"])
    head = op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "hash": "0" * 64}])
