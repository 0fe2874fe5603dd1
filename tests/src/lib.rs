//! Tests of the workspace as a whole: see the folders beside `src`.
