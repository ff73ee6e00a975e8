-- One variant: the best candidate of every good instruction, or the reason why there is none.
-- Candidates within $tie of the best key are tied, and the lowest seeded hash wins; the runner-up is what would win if
-- the winner were not there. No ORDER BY: records.write sorts.
WITH
eligible AS NOT MATERIALIZED (
    SELECT * FROM candidates WHERE counted >= needed
),
tops AS (
    SELECT instruction_id, max(key) AS top, count(*) AS candidates FROM eligible GROUP BY instruction_id
),
best AS (
    SELECT
        instruction_id,
        arg_min(
            {'id': response_id, 'member': member, 'mean': mean, 'value': value},
            sha256(concat_ws(chr(31), $seed, 'pick', response_id))
        ) AS pick,
        count(*) AS tied
    FROM eligible
    JOIN tops USING (instruction_id)
    WHERE round(top - key, 6) <= $tie
    GROUP BY instruction_id
),
others AS (
    SELECT * FROM eligible WHERE response_id NOT IN (SELECT pick.id FROM best)
),
other_tops AS (
    SELECT instruction_id, max(key) AS top FROM others GROUP BY instruction_id
),
second AS (
    SELECT
        instruction_id,
        arg_min(
            {'id': response_id, 'mean': mean, 'value': value},
            sha256(concat_ws(chr(31), $seed, 'pick', response_id))
        ) AS pick
    FROM others
    JOIN other_tops USING (instruction_id)
    WHERE round(top - key, 6) <= $tie
    GROUP BY instruction_id
),
judged AS (
    SELECT
        pool.instruction_id,
        pool.instruction,
        best.pick AS best,
        second.pick AS second,
        round(best.pick.value - second.pick.value, 6) AS margin,
        best.tied,
        coalesce(tops.candidates, 0) AS candidates,
        CASE
            WHEN pool.held_out THEN 'held out'
            WHEN best.pick.value < $min_score THEN 'below minimum score'
            WHEN $min_margin > 0 AND margin < $min_margin THEN 'margin too small'
            WHEN best.pick IS NOT NULL THEN NULL
            WHEN pool.instruction_id IN (SELECT instruction_id FROM candidates) THEN 'too few votes'
            ELSE 'no complete response'
        END AS reason
    FROM pool
    LEFT JOIN tops ON tops.instruction_id = pool.instruction_id AND NOT pool.held_out
    LEFT JOIN best ON best.instruction_id = pool.instruction_id AND NOT pool.held_out
    LEFT JOIN second ON second.instruction_id = pool.instruction_id AND NOT pool.held_out
),
picks AS (
    SELECT
        * EXCLUDE (best, second, tied),
        best.value AS value,
        CASE WHEN reason IS NULL THEN best END AS best,
        CASE WHEN reason IS NULL THEN second END AS second,
        CASE WHEN reason IS NULL THEN tied END AS tied
    FROM judged
),
votes AS (
    SELECT response_id, list_sort(list({'judge': judge, 'score': score})) AS votes
    FROM judgments
    WHERE
        score IS NOT NULL
        AND list_contains($judges::VARCHAR[], judge)
        AND response_id IN (SELECT best.id FROM picks)
    GROUP BY response_id
),
told AS (
    SELECT picks.*, CASE WHEN best IS NOT NULL THEN coalesce(votes.votes, []) END AS votes
    FROM picks
    LEFT JOIN votes ON votes.response_id = best.id
)
SELECT
    told.instruction_id,
    told.instruction,
    best.id AS response_id,
    best.member AS member,
    responses.text AS response,
    told.value,
    best.mean AS mean,
    told.votes,
    second.id AS runner_up_id,
    second.value AS runner_up_value,
    second.mean AS runner_up_mean,
    told.margin,
    told.tied,
    told.candidates,
    CASE WHEN told.reason IS NULL THEN 'ok' ELSE 'filtered' END AS status,
    told.reason
FROM responses
RIGHT JOIN told ON told.best.id = responses.response_id -- this way round the texts of all others only pass by
