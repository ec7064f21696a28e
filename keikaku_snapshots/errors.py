"""Every error of the library, in one tree.

::

    KeikakuError (RuntimeError)                                            70
    ├── UsageError (ValueError)                                             2
    │   ├── ParameterTypeError (TypeError)                                  2
    │   ├── InvalidURLError                                                 2
    │   ├── InvalidNameError                                                2
    │   ├── NoDatabaseError                                                 2
    │   ├── ConfigurationError                                              2
    │   ├── UnknownScaleError                                               2
    │   ├── UnknownDatasetError                                             2
    │   ├── UnknownPatchError                                               2
    │   ├── PatchDefinitionError                                            2
    │   └── SnapshotExistsError                                             2
    ├── SnapshotNotFoundError (FileNotFoundError)                          10
    ├── LockBusyError (BlockingIOError)                                    11
    │   ├── SnapshotInUseError                                             11
    │   ├── DatabaseInUseError                                             11
    │   └── LeaseLostError                                                 11
    ├── ConnectError (ConnectionError)                                     12
    │   └── AuthenticationError                                            12
    ├── SnapshotCorruptError                                               13
    │   └── JSONCorruptError                                               13
    ├── DiskFullError (OSError)                                            14
    ├── ToolError                                                          15
    │   ├── ToolMissingError (FileNotFoundError)                           15
    │   └── ToolVersionError                                               15
    ├── RefusedError (PermissionError)                                     16
    │   ├── ProtectedDatabaseError                                         16
    │   ├── OtherDatabaseError                                             16
    │   ├── TestDataReferencedError                                        16
    │   ├── UnsafeRestoreError                                             16
    │   └── PatchRefusedError                                              16
    ├── OperationTimeoutError (TimeoutError)                               17
    ├── AccessDeniedError (PermissionError)                                18
    │   └── AuditError                                                     18
    ├── CreateFailedError                                                  19
    ├── PatchFailedError                                                   20
    │   └── PatchRollbackError                                             21
    ├── OutcomeUnknownError                                                22
    ├── StaleError                                                         23
    ├── PruneIncompleteError                                               24
    ├── RestoreFailedError                                                 25
    │   └── HookFailedError                                                25
    ├── DataError                                                          26
    │   ├── ForeignKeyError                                                26
    │   ├── UniqueError                                                    26
    │   ├── NotNullError                                                   26
    │   └── CheckError                                                     26
    ├── MemoryLimitError (MemoryError)                                     27
    │   └── MemoryLimitExceededError                                       27
    ├── SchemaDriftError                                                   28
    ├── WindowClosedError                                                  29
    └── FileOperationError (OSError)                                       30

The number is the exit code of the command line; codes never change their
meaning, and any code that is not listed is a failure. Every class is also the
builtin error that a caller would expect.

The text of an error has up to three parts: what happened (with the Japanese
term in brackets where there is one), what was found and where, what to do.
"""

from __future__ import annotations

from typing import Any, ClassVar


class KeikakuError(RuntimeError):
    """Something unexpected happened inside the library.

    Args:
        what: What happened, one line of plain English, no full stop.
        found: What was found and where; lines.
        hint: What to do; the class's own ``hint`` when empty.
        hint_ja: The same in Japanese.
        fields: Further facts for code, such as a constraint's name or a key
            that must not appear in logs; readable as attributes of
            ``details``.
    """

    exit_code: ClassVar[int] = 70
    #: The Japanese term that stands in brackets behind what happened.
    term: ClassVar[str] = ""
    #: What to do, when the place that raises knows nothing better.
    default_hint: ClassVar[str] = "Run the command again with -v and report what it prints."
    #: The same in Japanese, shown with ``KEIKAKU_LANG=ja``; an error with a hint of its own may have its own.
    hint_ja: str = "-v を付けて再実行し、表示された内容を報告してください。"

    def __init__(
        self, what: str, *, found: str = "", hint: str = "", hint_ja: str = "", **fields: Any
    ) -> None:
        super().__init__(what)
        self.what = what
        self.found = found
        self.hint = hint or self.default_hint
        self.hint_ja = hint_ja or type(self).hint_ja
        self.details: dict[str, Any] = fields

    @property
    def headline(self) -> str:
        """What happened, in one line, with the Japanese term."""
        return f"{self.what} ({self.term})" if self.term else self.what

    def __str__(self) -> str:
        parts = [self.headline]
        if self.found:
            parts.append(self.found)
        if self.hint:
            parts.append(f"To fix this: {self.hint}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process boundaries (executors); keyword arguments
        # are lost by the default protocol.
        return (_rebuild, (type(self), self.what, self.found, self.hint, self.hint_ja, self.details))


def _rebuild(
    kind: type[KeikakuError], what: str, found: str, hint: str, hint_ja: str, fields: dict[str, Any]
) -> KeikakuError:
    return kind(what, found=found, hint=hint, hint_ja=hint_ja, **fields)


class UsageError(KeikakuError, ValueError):
    """A parameter, option or name is wrong; nothing was touched."""

    exit_code = 2
    default_hint = "Correct the value and call again; `keikaku COMMAND --help` lists what it takes."
    hint_ja = "値を修正して再実行してください(`keikaku COMMAND --help` で指定方法を確認できます)。"


class ParameterTypeError(UsageError, TypeError):
    """A parameter has the wrong type."""


class InvalidURLError(UsageError):
    """A database URL cannot be understood; its text is never repeated, it may hold a password."""

    default_hint = (
        "Write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with special characters "
        "of the password percent-encoded (@ is %40, / is %2F)."
    )
    hint_ja = (
        "postgresql://USER:PASSWORD@HOST:PORT/DATABASE の形式で指定し、"
        "パスワードの記号はパーセントエンコードしてください(@ は %40、/ は %2F)。"
    )


class InvalidNameError(UsageError):
    """A snapshot, version or database name has characters or a length that no file system takes."""

    default_hint = "Use letters, digits, '.', '_' and '-', at most 100, beginning with a letter or digit."
    hint_ja = "英数字と . _ - のみ、英数字で始まる 100 文字以内の名前にしてください。"


class NoDatabaseError(UsageError):
    """No database was named, and falling back to the embedded server is not allowed here."""

    default_hint = (
        "Give --db-url, or set KEIKAKU_DB_URL, PERFORMANCE_TEST_DATABASE_URL or "
        "TEST_DATABASE_URL; --embedded uses the embedded server."
    )
    hint_ja = (
        "--db-url を指定するか、KEIKAKU_DB_URL、PERFORMANCE_TEST_DATABASE_URL、TEST_DATABASE_URL "
        "のいずれかを設定してください。--embedded で組み込みサーバーを使えます。"
    )


class ConfigurationError(UsageError):
    """The configuration file has problems; all of them are listed with their paths."""

    default_hint = "Correct every line listed above; config/keikaku.yml shows all keys with comments."
    hint_ja = "上記の項目をすべて修正してください。config/keikaku.yml に全項目の説明があります。"


class UnknownScaleError(UsageError):
    """A scale is not defined."""

    default_hint = "Use one of the scales listed, or define your own under `scales:` in the configuration."
    hint_ja = "一覧にあるスケールを指定するか、設定ファイルの `scales:` に追加してください。"


class UnknownDatasetError(UsageError):
    """A dataset is not registered and is no importable ``package.module:attribute``."""

    default_hint = "Use one of the datasets listed, or give package.module:attribute."
    hint_ja = "一覧にあるデータセットか、package.module:attribute の形式で指定してください。"


class UnknownPatchError(UsageError):
    """A data patch or an execution of one is not known."""

    default_hint = "`keikaku patch list` shows the patches, `keikaku patch status` the executions."
    hint_ja = "`keikaku patch list` でパッチ、`keikaku patch status` で実行履歴を確認してください。"


class PatchDefinitionError(UsageError):
    """A data patch is declared wrongly, twice, or does not fit the tables; nothing was run."""

    default_hint = "Correct the patch's declaration; docs/how-to/write-a-patch.md shows every part of it."
    hint_ja = "パッチの定義を修正してください(docs/how-to/write-a-patch.md を参照)。"


class SnapshotExistsError(UsageError):
    """This version of the snapshot exists already and overwriting was not asked for."""

    default_hint = "Leave the version out to make a new one, or pass overwrite=True (--overwrite)."
    hint_ja = "version を省略して新しい版を作るか、overwrite=True(--overwrite)を指定してください。"


class SnapshotNotFoundError(KeikakuError, FileNotFoundError):
    """There is no valid snapshot of this name or version."""

    exit_code = 10
    default_hint = "`keikaku list` shows what is there; `keikaku create NAME` makes one."
    hint_ja = "`keikaku list` で一覧を確認し、`keikaku create NAME` で作成してください。"


class LockBusyError(KeikakuError, BlockingIOError):
    """Another process or thread works on the same snapshot or database."""

    exit_code = 11
    default_hint = "Wait until it has ended, or pass lock_wait_s (--lock-wait) to wait for it."
    hint_ja = "処理の終了を待つか、lock_wait_s(--lock-wait)で待ち時間を指定してください。"


class SnapshotInUseError(LockBusyError):
    """The snapshot is being read by a restore and cannot be deleted."""

    term = "使用中のため削除できません"
    default_hint = "Wait until the restore has ended, then run the same command again."
    hint_ja = "復元の終了後に同じコマンドを再度実行してください。"


class DatabaseInUseError(LockBusyError):
    """Other sessions hold what the restore must replace."""

    default_hint = (
        "End the sessions named above (commit or roll back, close), then restore again; "
        "--disconnect ends them for you."
    )
    hint_ja = (
        "上記のセッションを終了(COMMIT/ROLLBACK・切断)して再実行してください。"
        "--disconnect を付けると強制的に切断します。"
    )


class LeaseLostError(LockBusyError):
    """Another worker has taken this execution over; this one stopped and its last batch was rolled back."""

    default_hint = "Leave it to the other worker; `keikaku patch status` shows who that is."
    hint_ja = "別のワーカーに任せてください(`keikaku patch status` で確認できます)。"


class ConnectError(KeikakuError, ConnectionError):
    """The server cannot be reached, or the connection was lost before COMMIT was sent."""

    exit_code = 12
    default_hint = "Check host, port and that the server runs: pg_isready -h HOST -p PORT."
    hint_ja = "ホスト・ポートとサーバーの起動状態を確認してください(pg_isready -h HOST -p PORT)。"


class AuthenticationError(ConnectError):
    """The server refused the role or its password."""

    default_hint = "Check user and password of the database URL, and the server's pg_hba.conf."
    hint_ja = "URL のユーザー名とパスワード、サーバーの pg_hba.conf を確認してください。"


class SnapshotCorruptError(KeikakuError):
    """A snapshot's files are damaged, cut short or tampered with; the database was not touched."""

    exit_code = 13
    term = "スナップショットが破損"
    default_hint = "Restore an older version (`keikaku list`), or make a new snapshot."
    hint_ja = "以前の版を復元するか(`keikaku list`)、スナップショットを作り直してください。"


class JSONCorruptError(SnapshotCorruptError):
    """The JSON file of a test-data snapshot is damaged or cannot be read; no row was touched."""

    term = "JSONファイルが破損"
    default_hint = (
        "Correct the file at the place named above, restore an older version (`keikaku list`), "
        "or make a new snapshot."
    )
    hint_ja = (
        "上記の箇所を修正するか、以前の版を復元するか(`keikaku list`)、スナップショットを作り直してください。"
    )


class DiskFullError(KeikakuError, OSError):
    """Bytes, inodes or a quota are used up, or would be; nothing half-written is left."""

    exit_code = 14
    term = "ディスク容量不足"
    default_hint = "Free space, delete old snapshots, or use another --snapshot-dir."
    hint_ja = (
        "空き容量を確保するか、古いスナップショットを削除するか、別の --snapshot-dir を指定してください。"
    )


class ToolError(KeikakuError):
    """A PostgreSQL client program cannot be used."""

    exit_code = 15
    default_hint = "Install the client tools of the server's major version, or set PG_BIN to their directory."
    hint_ja = (
        "サーバーと同じメジャーバージョンのクライアントツールを導入するか、"
        "PG_BIN にディレクトリを設定してください。"
    )


class ToolMissingError(ToolError, FileNotFoundError):
    """No pg_dump, psql or pg_restore of the needed version was found."""


class ToolVersionError(ToolError):
    """The program found has a version that this server or file does not take."""


class RefusedError(KeikakuError, PermissionError):
    """A guard refused; nothing was changed."""

    exit_code = 16
    default_hint = "Read what the guard protects; an option named above allows it."
    hint_ja = "上記の保護内容を確認し、問題なければ該当オプションで許可してください。"


class ProtectedDatabaseError(RefusedError):
    """The database or host looks like production."""

    default_hint = "Check the URL. If this is really meant, pass allow_protected=True (--allow-protected)."
    hint_ja = "URL を確認してください。意図した操作であれば --allow-protected を指定してください。"


class OtherDatabaseError(RefusedError):
    """The database or the snapshot belongs to another application."""

    default_hint = (
        "Check snapshot name and URL. If this is really meant, pass "
        "from_other_database=True (--from-other-database)."
    )
    hint_ja = (
        "スナップショット名と URL を確認してください。"
        "意図した操作であれば --from-other-database を指定してください。"
    )


class TestDataReferencedError(RefusedError):
    """Rows that are not test data refer to test rows that would have to be deleted."""

    __test__ = False  # the name begins with "Test"; pytest must not collect it
    term = "外部キー制約違反"
    default_hint = "Delete or re-point the referring rows first, or pass clean_existing=False."
    hint_ja = "参照元の行を先に削除または変更するか、clean_existing=False を指定してください。"


class UnsafeRestoreError(RefusedError):
    """This way of restoring cannot be exact or atomic here; nothing was changed."""

    default_hint = "Use the other strategy, or remove the cause named above."
    hint_ja = "別の strategy を指定するか、上記の原因を取り除いてください。"


class PatchRefusedError(RefusedError):
    """A guard refused to run a data patch; no row was changed."""

    default_hint = "Do what the guard named above asks for, then run the patch again."
    hint_ja = "上記の条件を満たしてから、パッチを再実行してください。"


class OperationTimeoutError(KeikakuError, TimeoutError):
    """A step took longer than its limit and was stopped."""

    exit_code = 17
    default_hint = "Raise the limit named above, or find out what the server waits for (pg_stat_activity)."
    hint_ja = "上記の制限時間を延ばすか、サーバーの待機状態(pg_stat_activity)を確認してください。"


class AccessDeniedError(KeikakuError, PermissionError):
    """The role or the operating-system account lacks a right."""

    exit_code = 18
    default_hint = "Grant the right named above, or use another role or directory."
    hint_ja = "上記の権限を付与するか、別のロールまたはディレクトリを使用してください。"


class AuditError(AccessDeniedError):
    """The audit log could not be written, and ``audit="error"`` was asked for."""

    default_hint = "Make audit.log in the snapshot directory writable for this account, or set audit: warn."
    hint_ja = (
        "スナップショットディレクトリの audit.log に書き込めるようにするか、audit: warn を設定してください。"
    )


class CreateFailedError(KeikakuError):
    """A snapshot could not be made; nothing was published."""

    exit_code = 19
    term = "スナップショットの作成に失敗"
    default_hint = "Read the server's message above; earlier snapshots are untouched."
    hint_ja = "上記のサーバーのメッセージを確認してください。既存のスナップショットは変更されていません。"


class PatchFailedError(KeikakuError):
    """A data patch failed; what it had changed was taken back, or nothing had been changed."""

    exit_code = 20
    term = "データパッチに失敗"
    default_hint = "The data is as before. Read the cause above, correct it, and begin with a dry run."
    hint_ja = "データは元の状態です。上記の原因を修正し、ドライランからやり直してください。"


class PatchRollbackError(PatchFailedError):
    """What a data patch changed could not be taken back completely."""

    exit_code = 21
    term = "ロールバックに失敗"
    default_hint = (
        "Read which rows are left: `keikaku patch report ID`. Running "
        "`keikaku patch rollback ID` again continues where it stopped."
    )
    hint_ja = (
        "`keikaku patch report ID` で残った行を確認してください。"
        "`keikaku patch rollback ID` を再実行すると続きから処理します。"
    )


class OutcomeUnknownError(KeikakuError):
    """The connection was lost after COMMIT was sent; the work may or may not be done."""

    exit_code = 22
    default_hint = "Look into the database before running it again; it was not repeated for you."
    hint_ja = "再実行の前にデータベースの状態を確認してください。自動再実行はしていません。"


class StaleError(KeikakuError):
    """The newest valid snapshot is older or smaller than it may be."""

    exit_code = 23
    default_hint = "Look at the last run of `keikaku refresh`; run it by hand to see why it fails."
    hint_ja = "直近の `keikaku refresh` の結果を確認し、手動で実行して失敗の原因を調べてください。"


class PruneIncompleteError(KeikakuError):
    """Some old snapshots could not be deleted; the others were, and what was to stay is untouched."""

    exit_code = 24
    default_hint = "Remove the cause named above (rights, file system), then run `keikaku prune` again."
    hint_ja = "上記の原因(権限・ファイルシステム)を取り除き、`keikaku prune` を再実行してください。"


class RestoreFailedError(KeikakuError):
    """A restore failed; the database is as it was before."""

    exit_code = 25
    term = "復元に失敗"
    default_hint = "The database is unchanged. Read the server's message above."
    hint_ja = "データベースは変更されていません。上記のサーバーのメッセージを確認してください。"


class HookFailedError(RestoreFailedError):
    """An after-restore hook failed, so its new database was dropped; the live one is as it was before."""

    default_hint = (
        "Read above what the hook said, and correct it or the snapshot; "
        "--no-after-restore restores without hooks."
    )
    hint_ja = (
        "上記のフックの出力を確認し、フックまたはスナップショットを修正してください。"
        "フックなしで復元するには --no-after-restore を指定してください。"
    )


class DataError(KeikakuError):
    """The server refused generated rows; nothing was written."""

    exit_code = 26
    default_hint = "Correct the generator of the column named above."
    hint_ja = "上記の列のデータ生成処理を修正してください。"


class ForeignKeyError(DataError):
    """A row refers to a row that does not exist."""

    term = "外部キー制約違反"
    default_hint = "Create the referenced rows first; tables load in foreign-key order."
    hint_ja = "参照先の行を先に作成してください。"


class UniqueError(DataError):
    """A value that must be unique exists already."""

    term = "一意制約違反"
    default_hint = "Use another seed, or delete the existing test rows first (clean_existing=True)."
    hint_ja = "別の seed を使うか、既存のテストデータを先に削除してください(clean_existing=True)。"


class NotNullError(DataError):
    """A column that must have a value got none."""

    term = "NOT NULL制約違反"


class CheckError(DataError):
    """A value is refused by a check constraint."""

    term = "CHECK制約違反"


class MemoryLimitError(KeikakuError, MemoryError):
    """The configured memory limit was reached; nothing was written."""

    exit_code = 27
    default_hint = "Raise memory_limit_mb (--memory-limit), or use a smaller batch_size."
    hint_ja = "memory_limit_mb(--memory-limit)を上げるか、batch_size を小さくしてください。"


class MemoryLimitExceededError(MemoryLimitError):
    """A data patch used more memory than it may; its last batch was rolled back."""

    default_hint = "Raise memory_limit of the patch (--memory-limit), or use a smaller batch_size."
    hint_ja = "パッチの memory_limit(--memory-limit)を上げるか、batch_size を小さくしてください。"


class SchemaDriftError(KeikakuError):
    """The snapshot was made for another schema than the database has now."""

    exit_code = 28
    term = "スキーマバージョンが一致しません"
    default_hint = "Make a new snapshot, migrate first, or pass on_schema_mismatch='warn'."
    hint_ja = (
        "スナップショットを作り直すか、マイグレーションを実行するか、"
        "on_schema_mismatch='warn' を指定してください。"
    )


class WindowClosedError(KeikakuError):
    """No maintenance window is open now."""

    exit_code = 29
    term = "メンテナンス時間外"
    default_hint = "Wait for the window named above, or give --outside-window REASON, which is recorded."
    hint_ja = "上記のメンテナンス時間まで待つか、--outside-window に理由を指定してください(記録されます)。"


class FileOperationError(KeikakuError, OSError):
    """The disk failed (EIO and the like) while a snapshot was deleted, renamed, marked or read."""

    exit_code = 30
    term = "ファイル操作に失敗"
    default_hint = (
        "Check the disk and its file system (dmesg), then run the command again; "
        "`keikaku list` shows what is there."
    )
    hint_ja = (
        "ディスクとファイルシステムの状態(dmesg)を確認してから再実行してください。"
        "現在の状態は `keikaku list` で確認できます。"
    )
