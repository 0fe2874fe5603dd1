-- Events by day and hourly counts by month. Partitions are made by the service, ahead of time.

-- What was recorded. `key` stands for tenant and id (see rows.rs); it is unique in each partition, whose primary key it
-- is: an index of the parent would have to hold the hour too, and be wider by a third.
CREATE TABLE sightline_stats.events (
    key uuid NOT NULL,
    hour int4 NOT NULL,
    level int2 NOT NULL,
    source int2 NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    application text COLLATE "C" NOT NULL
) PARTITION BY RANGE (hour);

-- How many distinct events there are. Written in the transaction that writes the events, so it is complete at any moment.
-- `key` stands for hour, tenant, user, application, level and source (see rows.rs): looking up 16 bytes costs half of
-- looking up the texts. The other indexes hold no count, so that counting up touches none.
CREATE TABLE sightline_stats.rollups (
    key uuid NOT NULL,
    frames int8 NOT NULL,
    hour int4 NOT NULL,
    level int2 NOT NULL,
    source int2 NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    application text COLLATE "C" NOT NULL,
    PRIMARY KEY (hour, key)
) PARTITION BY RANGE (hour);

-- A tenant's hours, in the order of pages.
CREATE INDEX rollups_by_hour ON sightline_stats.rollups (tenant, hour, user_id, application, level, source);
-- One user's counts.
CREATE INDEX rollups_by_user ON sightline_stats.rollups (tenant, user_id, hour);

-- One row: events before this hour are refused, because their ids may have been forgotten.
CREATE TABLE sightline_stats.state (
    only_row bool PRIMARY KEY DEFAULT true CHECK (only_row),
    forgotten_before int8 NOT NULL
);
INSERT INTO sightline_stats.state (forgotten_before) VALUES (0);
