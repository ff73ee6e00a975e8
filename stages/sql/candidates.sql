-- One variant's candidates: every complete response with its votes, its value under $rule, and the key it is ranked by.
-- Ids, members and scores alone are read: the texts, most of the files, stay where they are. No ORDER BY: this is a
-- table for select.sql, whose result doesn't depend on the order.
WITH
complete AS (
    SELECT response_id, instruction_id, member, sample_index
    FROM responses
    WHERE status = 'ok' AND sample_index < $samples AND list_contains($members::VARCHAR[], member)
),
given AS (
    SELECT
        response_id,
        count(*) AS votes,
        sum(score::DECIMAL(18, 9)) AS total -- exact: equal votes are a tie, in whatever order they are summed
    FROM judgments
    WHERE score IS NOT NULL AND list_contains($judges::VARCHAR[], judge)
    GROUP BY response_id
),
middles AS (
    SELECT response_id, median(score) AS middle
    FROM judgments
    WHERE $rule = 'median' AND score IS NOT NULL AND list_contains($judges::VARCHAR[], judge)
    GROUP BY response_id
),
own AS ( -- votes of a member on itself, where the rule leaves them out
    SELECT complete.response_id, count(*) AS votes, sum(score::DECIMAL(18, 9)) AS total
    FROM complete
    JOIN judgments ON judgments.response_id = complete.response_id AND judgments.judge = complete.member
    WHERE $rule = 'leave-own-judge-out' AND score IS NOT NULL AND list_contains($judges::VARCHAR[], judge)
    GROUP BY complete.response_id
),
valued AS (
    SELECT
        complete.*,
        coalesce(given.votes, 0) - coalesce(own.votes, 0) AS counted,
        len($judges::VARCHAR[])
        - ($rule = 'leave-own-judge-out' AND list_contains($judges::VARCHAR[], member))::INTEGER AS voters,
        round(given.total::DOUBLE / given.votes, 6) AS mean,
        CASE $rule
            WHEN 'mean' THEN round(given.total::DOUBLE / given.votes, 6)
            WHEN 'median' THEN round(middles.middle, 6)
            WHEN 'leave-own-judge-out' THEN round((given.total - coalesce(own.total, 0))::DOUBLE / nullif(counted, 0), 6)
        END AS value -- NULL without a vote that counts, and under `first` and `random`
    FROM complete
    LEFT JOIN given USING (response_id)
    LEFT JOIN middles USING (response_id)
    LEFT JOIN own USING (response_id)
)
SELECT
    response_id,
    instruction_id,
    member,
    sample_index,
    counted,
    CASE
        WHEN $rule IN ('first', 'random') THEN 0
        ELSE least($min_votes, greatest(voters, 1)) -- a judge dropped from params makes nothing impossible
    END AS needed,
    mean,
    value,
    CASE $rule
        WHEN 'first' THEN -(sample_index * len($members::VARCHAR[]) + list_position($members::VARCHAR[], member))
        WHEN 'random' THEN 0
        ELSE coalesce(value, 0) -- a response without a vote is below every score
    END::DOUBLE AS key
FROM valued
