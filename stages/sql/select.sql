-- One variant: the best candidate of every good instruction by $rule, or the reason why there is none.
WITH
votes AS (
    SELECT
        response_id,
        list({'judge': judge, 'score': score} ORDER BY judge, score) AS votes,
        -- Summed in a fixed order and rounded: equal votes are a tie, whatever the threads or the last bit.
        round(list_avg(list(score ORDER BY judge, score)), 6) AS mean
    FROM judgments
    WHERE list_contains($judges::VARCHAR[], judge) AND score IS NOT NULL
    GROUP BY response_id
),
complete AS (
    SELECT responses.*, votes.mean, coalesce(votes.votes, []) AS votes
    FROM responses
    LEFT JOIN votes USING (response_id)
    WHERE
        responses.status = 'ok'
        AND responses.sample_index < $samples
        AND list_contains($members::VARCHAR[], responses.member)
),
ranked AS (
    SELECT
        *,
        count(*) OVER (PARTITION BY instruction_id) AS candidates,
        row_number() OVER (
            PARTITION BY instruction_id
            ORDER BY
                CASE $rule WHEN 'mean' THEN -mean WHEN 'first' THEN sample_index END NULLS LAST,
                CASE $rule WHEN 'first' THEN list_position($members::VARCHAR[], member) END,
                sha256(concat_ws(chr(31), $seed, 'pick', response_id)),
                response_id
        ) AS place
    FROM complete
    WHERE $rule <> 'mean' OR len(votes) >= $min_votes
)
SELECT
    pool.instruction_id,
    pool.instruction,
    best.response_id,
    best.member,
    best.text AS response,
    best.mean,
    best.votes,
    runner_up.response_id AS runner_up_id,
    runner_up.mean AS runner_up_mean,
    coalesce(best.candidates, 0) AS candidates,
    CASE WHEN best.response_id IS NULL THEN 'filtered' ELSE 'ok' END AS status,
    CASE
        WHEN pool.held_out THEN 'held out'
        WHEN best.response_id IS NOT NULL THEN NULL
        WHEN pool.instruction_id IN (SELECT instruction_id FROM complete) THEN 'too few votes'
        ELSE 'no complete response'
    END AS reason
FROM pool
LEFT JOIN ranked AS best
    ON best.instruction_id = pool.instruction_id AND best.place = 1 AND NOT pool.held_out
LEFT JOIN ranked AS runner_up
    ON runner_up.instruction_id = pool.instruction_id AND runner_up.place = 2 AND NOT pool.held_out
ORDER BY pool.instruction_id
