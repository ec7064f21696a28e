"""The schema ``keikaku_patches``: what is remembered of patches, in the database that they change."""

from __future__ import annotations

from typing import Final

SCHEMA: Final = "keikaku_patches"

# Texts of keys are arrays of texts: PostgreSQL's own output, which its input takes back exactly.
# Operator requests and signs of life are rows of their own, written over another connection, so that
# they never wait for the transaction of a batch (and never deadlock with it).
STATEMENTS: Final = f"""
CREATE SCHEMA IF NOT EXISTS {SCHEMA};
CREATE SEQUENCE IF NOT EXISTS {SCHEMA}.lease;
CREATE TABLE IF NOT EXISTS {SCHEMA}.execution (
  execution_id uuid PRIMARY KEY,
  patch_name text NOT NULL,
  patch_version integer NOT NULL DEFAULT 1,
  kind text NOT NULL CHECK (kind IN ('run', 'dry_run', 'rehearsal')),
  status text NOT NULL CHECK (status IN ('pending', 'running', 'completed', 'failed')),
  sub_state text NOT NULL,
  dry_run boolean NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  started_at timestamptz,
  completed_at timestamptz,
  actor text NOT NULL,
  parameters jsonb NOT NULL DEFAULT '{{}}',
  parameters_hash text NOT NULL DEFAULT '',
  source_hash text NOT NULL DEFAULT '',
  target_tables text[] NOT NULL DEFAULT '{{}}',
  mode text NOT NULL DEFAULT 'batched',
  cursor text[],
  upper_key text[],
  batch_number integer NOT NULL DEFAULT 0,
  batch_size integer NOT NULL DEFAULT 0,
  estimated_records bigint,
  estimated_s double precision,
  active_s double precision NOT NULL DEFAULT 0,
  processed_records bigint NOT NULL DEFAULT 0,
  changed_records bigint NOT NULL DEFAULT 0,
  unchanged_records bigint NOT NULL DEFAULT 0,
  rejected_records bigint NOT NULL DEFAULT 0,
  inconsistent_records bigint NOT NULL DEFAULT 0,
  peak_memory_bytes bigint NOT NULL DEFAULT 0,
  lease_token bigint NOT NULL DEFAULT 0,
  backup_reference text NOT NULL DEFAULT '',
  outside_window_reason text NOT NULL DEFAULT '',
  approved_by text NOT NULL DEFAULT '',
  error_message text NOT NULL DEFAULT '',
  error_sqlstate text NOT NULL DEFAULT '',
  rollback_performed boolean NOT NULL DEFAULT false,
  conflicts bigint NOT NULL DEFAULT 0,
  findings jsonb NOT NULL DEFAULT '{{}}'
);
CREATE INDEX IF NOT EXISTS execution_by_patch ON {SCHEMA}.execution (patch_name, created_at DESC);
CREATE TABLE IF NOT EXISTS {SCHEMA}.batch_log (
  execution_id uuid NOT NULL REFERENCES {SCHEMA}.execution,
  phase text NOT NULL CHECK (phase IN ('run', 'rollback')),
  number integer NOT NULL,
  started_at timestamptz NOT NULL,
  seconds double precision NOT NULL,
  batch_size integer NOT NULL,
  processed integer NOT NULL,
  changed integer NOT NULL,
  inconsistent integer NOT NULL,
  memory_bytes bigint NOT NULL,
  transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
  PRIMARY KEY (execution_id, phase, number)
);
CREATE TABLE IF NOT EXISTS {SCHEMA}.deferred (
  execution_id uuid NOT NULL REFERENCES {SCHEMA}.execution,
  key text[] NOT NULL,
  PRIMARY KEY (execution_id, key)
);
CREATE TABLE IF NOT EXISTS {SCHEMA}.rejected (
  execution_id uuid NOT NULL REFERENCES {SCHEMA}.execution,
  key text[] NOT NULL,
  why text NOT NULL
);
CREATE TABLE IF NOT EXISTS {SCHEMA}.undo (
  execution_id uuid NOT NULL REFERENCES {SCHEMA}.execution,
  number integer NOT NULL,
  table_name text NOT NULL,
  description jsonb NOT NULL,
  rollback_cursor text[],
  rollback_done boolean NOT NULL DEFAULT false,
  PRIMARY KEY (execution_id, number)
);
CREATE TABLE IF NOT EXISTS {SCHEMA}.conflict (
  execution_id uuid NOT NULL REFERENCES {SCHEMA}.execution,
  table_name text NOT NULL,
  key text[] NOT NULL,
  columns text[] NOT NULL,
  why text NOT NULL
);
CREATE TABLE IF NOT EXISTS {SCHEMA}.control (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  execution_id uuid NOT NULL,
  request text NOT NULL CHECK (request IN ('pause', 'cancel')),
  actor text NOT NULL,
  requested_at timestamptz NOT NULL DEFAULT now(),
  taken_at timestamptz
);
CREATE TABLE IF NOT EXISTS {SCHEMA}.approval (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  patch_name text NOT NULL,
  source_hash text NOT NULL,
  parameters_hash text NOT NULL,
  actor text NOT NULL,
  approved_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS {SCHEMA}.heartbeat (
  execution_id uuid PRIMARY KEY,
  lease_token bigint NOT NULL,
  beat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  process text NOT NULL,
  backend_pid integer NOT NULL,
  memory_bytes bigint NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS {SCHEMA}.schedule (
  entry text PRIMARY KEY,
  patch_name text NOT NULL,
  cron text NOT NULL,
  time_zone text NOT NULL,
  handled_until timestamptz NOT NULL,
  due_at timestamptz,
  claimed_at timestamptz,
  is_begun boolean NOT NULL DEFAULT true,
  outcome text NOT NULL DEFAULT '',
  execution_id uuid
);
CREATE TABLE IF NOT EXISTS {SCHEMA}.outbox (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  execution_id uuid NOT NULL,
  event text NOT NULL,
  urgent boolean NOT NULL,
  title text NOT NULL,
  body text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  routed_at timestamptz,
  escalated_at timestamptz,
  closed_at timestamptz
);
CREATE INDEX IF NOT EXISTS outbox_open ON {SCHEMA}.outbox (number) WHERE closed_at IS NULL;
CREATE TABLE IF NOT EXISTS {SCHEMA}.delivery (
  message bigint NOT NULL REFERENCES {SCHEMA}.outbox ON DELETE CASCADE,
  channel text NOT NULL,
  tries integer NOT NULL DEFAULT 0,
  next_try_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  claim uuid,
  claimed_until timestamptz,
  last_error text NOT NULL DEFAULT '',
  delivered_at timestamptz,
  dead_at timestamptz,
  PRIMARY KEY (message, channel)
);
CREATE INDEX IF NOT EXISTS delivery_waiting ON {SCHEMA}.delivery (next_try_at)
  WHERE delivered_at IS NULL AND dead_at IS NULL;
CREATE TABLE IF NOT EXISTS {SCHEMA}.audit_mark (
  kind text PRIMARY KEY CHECK (kind IN ('head', 'checkpoint')),
  line text NOT NULL
);
CREATE TABLE IF NOT EXISTS {SCHEMA}.audit (
  number bigint PRIMARY KEY,
  month date NOT NULL,
  key_id text NOT NULL,
  line text NOT NULL
);
"""
