-- Votes on the scored responses by judge and by the rung that read them; scores by the whole rating they round to.
SELECT
    judge,
    coalesce(parse, 'unnamed') AS parse,
    -- Half a point up, as anamnesis.agreement.ratings does; 0 stands for a missing vote.
    CASE WHEN score IS NULL THEN 0 ELSE least(5, greatest(1, floor(score + 0.5)))::INTEGER END AS rating,
    count(*) AS votes
FROM judgments
WHERE
    list_contains($judges::VARCHAR[], judge)
    AND response_id IN (SELECT response_id FROM scored)
GROUP BY ALL
ORDER BY judge, parse, rating
