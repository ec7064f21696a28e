"""What a report means and what to do: rules over its numbers, in words."""

from __future__ import annotations

import itertools
import statistics
from typing import TYPE_CHECKING, NamedTuple

from keikaku_snapshots.pages.html import Finding
from keikaku_snapshots.perf.floors import floors, share_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keikaku_snapshots.perf.report import Measurement, PerformanceReport

#: Slowest through median from which on the runs are called uneven.
_UNEVEN = 1.5
#: Time for an office at one scale through that at the next smaller one that is worth a word.
_GROWTH = 1.5
#: Runs from which on two reports can be compared (see `comparison`).
_COMPARABLE_RUNS = 5
#: Milliseconds of a round trip that a local server never needs.
_FAR_MS = 1.0


class _Remedy(NamedTuple):
    """What helps."""

    #: In English.
    english: str
    #: The same in Japanese.
    japanese: str


#: What helps where a limit of the step is broken.
_REMEDIES = {
    "generate": _Remedy(
        "Look at the server first: disk, checkpoints (max_wal_size), other load. For a load into many "
        "indexes generate(…, drop_and_readd_constraints=True) halves the time.",
        "まずサーバーを確認してください: ディスク、チェックポイント(max_wal_size)、ほかの負荷。"
        "インデックスが多いテーブルへのロードは generate(…, drop_and_readd_constraints=True) で"
        "半分の時間になります。",
    ),
    "restore": _Remedy(
        "Let the role create databases: a swap loads without waiting for the disk. Close other sessions, "
        "which force a restore in place.",
        "ロールにデータベースの作成を許可してください(swap はディスクを待たずにロードします)。"
        "in_place での復元の原因になるほかのセッションを閉じてください。",
    ),
    "workload": _Remedy(
        "Look for queries in a loop (the number of queries must not grow with offices) and for a missing "
        "index; the server logs statements above log_min_duration_statement.",
        "ループの中のクエリ(クエリ数は事業所数とともに増えてはいけません)と、足りないインデックスを"
        "探してください。log_min_duration_statement を超えた文はサーバーのログに出ます。",
    ),
}
_TIMEOUT_REMEDY = _Remedy(
    "Find what was waited for: pg_stat_activity while it runs, the server's log after it. Statements are "
    "stopped after 600 s; a free connection is waited for 60 s (max_connections must allow 50 of them).",
    "何を待っていたのかを調べてください: 実行中は pg_stat_activity、実行後はサーバーのログ。文は 600 秒で"
    "止められ、空き接続は 60 秒待ちます(max_connections は 50 本を許す必要があります)。",
)


def findings(report: PerformanceReport) -> list[Finding]:
    """Say what a report means and what to do.

    Args:
        report: The report.

    Returns:
        What to act on first, then what to know.
    """
    found = [
        *_floors(report),
        *_speed(report),
        *_growth(report),
        *_queries(report),
        *_uneven(report),
        *_environment(report),
    ]
    order = ("act", "good", "note")
    return sorted(found, key=lambda finding: order.index(finding.kind))


def _floors(report: PerformanceReport) -> Iterator[Finding]:
    lines = floors(report)
    for floor in lines:
        if floor.status == "broken":
            advice, advice_ja = _REMEDIES.get(floor.title.split()[0], _TIMEOUT_REMEDY)
            text, text_ja = (
                f"{word}: {floor.title} ({floor.detail})" for word in ("Broken", "基準を満たしていません")
            )
            yield Finding("act", f"{text}.", advice, f"{text_ja}。", advice_ja)
    told = " ".join(floor.detail for floor in lines)
    for item in report.measurements:
        for failure in item.failures:
            if failure.message not in told:
                yield Finding(
                    "act",
                    f"{item.title} failed with {failure.kind}: {failure.message}.",
                    "Run it again with -v; docs/troubleshooting.md knows the errors.",
                    f"{item.title} は {failure.kind} で失敗しました: {failure.message}",
                    "-v を付けて再実行してください。エラーの説明は docs/troubleshooting.md にあります。",
                )
    holding = [floor for floor in lines if floor.status == "holds"]
    if holding:
        shares = [floor.value_s / floor.limit_s for floor in holding if floor.value_s and floor.limit_s]
        closest = share_text(max(shares)) if shares else ""
        yield Finding(
            "good",
            f"{len(holding)} of {len(lines)} limits are measured and hold"
            + (f"; the closest one uses {closest} of it." if closest else "."),
            text_ja=f"{len(lines)} 個の基準のうち {len(holding)} 個を計測し、満たしています。"
            + (f"最も近いものは基準の {closest} です。" if closest else ""),
        )
    missing = ", ".join(floor.title for floor in lines if floor.status == "not measured")
    if missing:
        yield Finding(
            "note",
            f"Not measured: {missing}.",
            "Measure with --scale medium.",
            f"計測していません: {missing}",
            "--scale medium で計測してください。",
        )


def _speed(report: PerformanceReport) -> Iterator[Finding]:
    for scale in report.scales[-1:]:
        parts, units = [], 0
        for item in report.measurements:
            if item.scale == scale and item.median_s:
                rate = f" ({item.rows / item.median_s:,.0f} rows/s)" if item.step == "generate" else ""
                parts.append(f"{item.step} {item.median_s:.3g} s{rate}")
                units = item.units
        if parts:
            listed = ", ".join(parts)
            yield Finding(
                "good",
                f"At {scale} ({units:,} offices) the median run takes: {listed}.",
                text_ja=f"{scale}({units:,} 事業所)の中央値: {listed}",
            )
    yield from _restores(report)


def _restores(report: PerformanceReport) -> Iterator[Finding]:
    """Restoring, the quickest way at the largest scale, against generating again."""
    restores = [
        item
        for item in report.measurements
        if item.step.startswith("restore") and item.scale == report.scales[-1] and item.seconds
    ]
    restore = min(restores, key=lambda item: item.median_s or 0.0, default=None)
    generate = report.find("generate", restore.scale) if restore is not None else None
    if restore is None or generate is None or not restore.median_s or not generate.median_s:
        return
    factor = generate.median_s / restore.median_s
    if factor >= 1.2:
        warm = restore.step == "restore_warm"
        way, way_ja = ("from the template", "テンプレート") if warm else ("from the file", "ファイル")
        yield Finding(
            "note",
            f"Restoring {restore.scale} {way} is {factor:.1f} times faster than generating it again.",
            "Let tests restore the snapshot instead of generating.",
            f"{restore.scale} の復元({way_ja}から)は生成し直すより {factor:.1f} 倍速いです。",
            "テストでは生成せず、スナップショットを復元してください。",
        )
    elif factor < 0.8:
        yield Finding(
            "note",
            f"Restoring {restore.scale} takes {1 / factor:.1f} times as long as generating it.",
            "At this size generating is quick; a snapshot pays for rows that are not generated.",
            f"{restore.scale} の復元には生成の {1 / factor:.1f} 倍の時間がかかります。",
            "この規模では生成が速いです。スナップショットは生成できない行があるときに役立ちます。",
        )


def _growth(report: PerformanceReport) -> Iterator[Finding]:
    for smaller, larger in itertools.pairwise(report.scales):
        for item in report.measurements:
            before = report.find(item.step, smaller)
            if item.scale != larger or before is None or not item.office_s or not before.office_s:
                continue
            growth = item.office_s / before.office_s
            if growth > _GROWTH:
                yield Finding(
                    "act",
                    f"{item.step} grows faster than the data: an office costs {growth:.1f} times as much at "
                    f"{larger} as at {smaller}.",
                    "Look for a query that reads a whole table for each office, and for memory that spills "
                    "to disk (work_mem, shared_buffers).",
                    f"{item.step} はデータより速く増えています: 1 事業所あたりの時間が {larger} では "
                    f"{smaller} の {growth:.1f} 倍です。",
                    "事業所ごとにテーブル全体を読むクエリと、メモリ不足によるディスクへの書き出し(work_mem、"
                    "shared_buffers)を探してください。",
                )


def _queries(report: PerformanceReport) -> Iterator[Finding]:
    counted = [item for item in report.measurements if item.queries]
    if not counted:
        return
    listed = ", ".join(f"{max(item.queries)} for {item.units:,} offices" for item in counted)
    listed_ja = "、".join(f"{item.units:,} 事業所で {max(item.queries)} 回" for item in counted)
    if any(max(item.queries) > item.units for item in counted):
        advice, advice_ja = _REMEDIES["workload"]
        text_ja = f"ワークロードのクエリが多すぎます: {listed_ja}"
        yield Finding("act", f"The workload runs many queries: {listed}.", advice, text_ja, advice_ja)
    else:
        text = f"The workload asks in sets: {listed} (queries of a run)."
        yield Finding("good", text, text_ja=f"ワークロードはまとめて問い合わせています: {listed_ja}")


def _uneven(report: PerformanceReport) -> Iterator[Finding]:
    uneven = [item for item in report.measurements if _spread(item) > _UNEVEN]
    if uneven:
        listed = ", ".join(f"{item.title} (slowest {_spread(item):.1f} times the median)" for item in uneven)
        listed_ja = "、".join(f"{item.title}(最も遅い回が中央値の {_spread(item):.1f} 倍)" for item in uneven)
        load, cores = report.environment.get("load_at_begin"), report.environment.get("cores")
        busy = f" The load was {load} on {cores} cores at the beginning." if load and cores else ""
        busy_ja = f" 開始時の負荷は {cores} コアに対して {load} でした。" if load and cores else ""
        yield Finding(
            "note",
            f"Runs scatter: {listed}.{busy}",
            "Measure on a machine that does nothing else, or with more --runs, before comparing.",
            f"計測値がばらついています: {listed_ja}。{busy_ja}",
            "比較する前に、ほかの負荷のないマシンで計測するか、--runs を増やしてください。",
        )
    if 0 < report.runs < _COMPARABLE_RUNS:
        yield Finding(
            "note",
            f"{report.runs} runs of each step are too few to compare with another report.",
            f"Measure with --runs {_COMPARABLE_RUNS} or more.",
            f"各ステップ {report.runs} 回では、ほかのレポートと比較するには少なすぎます。",
            f"--runs {_COMPARABLE_RUNS} 以上で計測してください。",
        )


def _spread(item: Measurement) -> float:
    return max(item.seconds) / statistics.median(item.seconds) if len(item.seconds) > 1 else 1.0


def _environment(report: PerformanceReport) -> Iterator[Finding]:
    settings = report.environment.get("server_settings", {})
    off = [
        name for name in ("fsync", "synchronous_commit", "full_page_writes") if settings.get(name) == "off"
    ]
    if off:
        yield Finding(
            "note",
            f"The server does not wait for its disk ({', '.join(f'{name} is off' for name in off)}).",
            "Right for tests, faster than production; compare only with reports of the same settings.",
            f"サーバーはディスクへの書き込みを待っていません({'、'.join(f'{name} = off' for name in off)})。",
            "テストには適切ですが、本番より速くなります。同じ設定のレポートとだけ比較してください。",
        )
    if settings.get("shared_buffers") == "128MB" and "medium" in report.scales:
        yield Finding(
            "note",
            "shared_buffers has its small default, 128MB.",
            "docker-compose.test.yml has settings for a server of performance tests.",
            "shared_buffers が小さい既定値(128MB)のままです。",
            "性能テスト用サーバーの設定は docker-compose.test.yml にあります。",
        )
    trip = report.environment.get("round_trip_ms")
    if isinstance(trip, int | float) and trip > _FAR_MS:
        yield Finding(
            "note",
            f"A round trip to the server takes {trip:.1f} ms; each query of a workload pays it.",
            "Measure next to the server when the network is not what is tested.",
            f"サーバーとの往復に {trip:.1f} ms かかり、クエリごとに加わります。",
            "ネットワークを測りたいのでなければ、サーバーの近くで計測してください。",
        )
    slow = [
        item for item in report.measurements if item.step == "restore" and item.note.startswith("in_place")
    ]
    if slow:
        reason = slow[-1].note.partition(": ")[2]
        yield Finding(
            "note",
            f"Restores were done in place ({reason}).",
            "A swap is usually faster; it needs a role that may create databases.",
            f"復元は in_place で行われました({reason})。",
            "通常は swap のほうが速いです。データベースを作成できるロールが必要です。",
        )
