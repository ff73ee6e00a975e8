-- The winner of each instruction by rule `mean` over all $judges (dropped = '') and again without each one of them.
WITH
votes AS (
    SELECT instruction_id, response_id, member, unnest($judges::VARCHAR[]) AS judge, unnest(scores) AS score
    FROM scored
),
panels AS (
    SELECT '' AS dropped
    UNION ALL
    SELECT unnest($judges::VARCHAR[]) AS dropped
),
means AS (
    SELECT
        panels.dropped,
        votes.instruction_id,
        votes.response_id,
        votes.member,
        -- Summed in a fixed order and rounded, as select.sql does: equal votes are a tie.
        round(list_avg(list(votes.score ORDER BY votes.judge)), 6) AS mean
    FROM panels
    INNER JOIN votes ON votes.judge <> panels.dropped AND votes.score IS NOT NULL
    GROUP BY panels.dropped, votes.instruction_id, votes.response_id, votes.member
    -- A dropped judge makes nothing impossible: fewer judges, fewer votes asked for.
    HAVING count(*) >= least($min_votes, len($judges::VARCHAR[]) - CASE panels.dropped WHEN '' THEN 0 ELSE 1 END)
)
SELECT
    instruction_id,
    dropped,
    response_id,
    member,
    list(member) OVER (PARTITION BY dropped, instruction_id) AS candidates
FROM means
QUALIFY
    row_number() OVER (
        PARTITION BY dropped, instruction_id
        ORDER BY mean DESC, sha256(concat_ws(chr(31), $seed, 'pick', response_id)), response_id
    ) = 1
ORDER BY instruction_id, dropped
